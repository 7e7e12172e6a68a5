"""Where a prompt ends and the student's tokens begin, over the chat formats of model families: the same for student and teachers."""

from copy import deepcopy
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from chat_families import FAMILIES, codec_of, plain

from gradalign.contexts import CONTEXTS, PLACES, Material, render_context, render_question, spoken
from gradalign.engines import HFEngine
from gradalign.models import LoadedModel, LoadOptions, load_model
from gradalign.models import chat as chat_module
from gradalign.pipeline import Cast, Member
from gradalign.pipeline.openings import opening_notices, takes_system
from gradalign.pipeline.progress import Silent
from gradalign.pipeline.prompts import teacher_prompts
from gradalign.pipeline.rollouts import Pool, Sampling, sample_rollouts
from gradalign.pipeline.targeted import Branch, _targeted
from gradalign.questions import grade, stated_answer
from gradalign.types import Completion, GradalignError, Grade, Message, Question, Rollout, TeacherSpec

QUESTION = Question("q", "What is 12 + 30?", "42", "numeric", solution="12 + 30 = 42. Answer: 42")
MATERIAL = Material("12 + 30 = 42. Answer: 42", "the total is 41. Answer: 41", "add. Answer: 42", QUESTION.solution, "42")
SAID = "12 + 30 = 42.\nAnswer: 42"
THOUGHT = "<think>\nadd 30\n</think>\n\n12 + 30 = 42. Answer: 42"


def messages(family) -> list[Message]:
    """The student's message, and every teacher's that the family's template can have."""
    places = [place for place in PLACES if family.system or place != "system"]
    taught = [render_context(context, QUESTION, MATERIAL, place) for context in CONTEXTS[1:] for place in places]
    return [Message(render_question(QUESTION)), *taught]


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def said(family) -> str:
    return THOUGHT if family.thinking else SAID


def test_every_prompt_of_student_and_teachers_ends_in_the_same_boundary_tokens(family):
    codec = codec_of(family)
    opening = codec.ids(family.opening)
    asked = messages(family)
    assert len({*asked}) == len(asked) == 1 + 6 * (3 if family.system else 2)
    for message in asked:
        assert codec.boundary(message.user, message.system) == opening
        assert codec.prompt(message.user, message.system)[-len(opening) :] == opening
    assert codec.shown(opening) == family.opening


def test_prompt_and_completion_are_the_tokens_of_the_whole_conversation(family, said):
    codec = codec_of(family)
    completion = codec.ids(said + family.end)
    for message in messages(family):
        turns = [*chat_module.messages(message.user, message.system), {"role": "assistant", "content": said}]
        settings = chat_module.template_settings(family.thinking)
        whole = codec.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **settings)["input_ids"]
        begins = [*codec.prompt(message.user, message.system), *completion]
        assert whole[: len(begins)] == begins
        assert codec.shown(whole[len(begins) :]).strip() == ""  # a line break after the turn, which no one samples


def test_the_completions_tokens_are_untouched_by_what_precedes(family, said):
    codec = codec_of(family)
    completion = codec.ids(said)
    for message in messages(family):
        prompt = codec.prompt(message.user, message.system)
        assert codec.ids(codec.shown(prompt) + said) == (*prompt, *completion)


def test_bos_appears_exactly_once_where_there_is_one(family):
    codec = codec_of(family)
    bos = codec.tokenizer.bos_token_id
    if family.bos is not None:
        assert codec.tokenizer("x")["input_ids"][0] == bos  # plain text gets one too, so two would be easy to have
    for message in messages(family):
        tokens = codec.prompt(message.user, message.system)
        assert [i for i, token in enumerate(tokens) if token == bos] == ([] if family.bos is None else [0])


def test_a_system_message_is_shown_or_known_not_to_be(family):
    codec = codec_of(family)
    assert takes_system(codec) == family.system
    if family.system:
        prompt = codec.prompt("What?", "A correct solution: 42")
        assert codec.shown(prompt).index("A correct solution: 42") < codec.shown(prompt).index("What?")


def test_where_the_system_text_has_no_turn_of_its_own_system_is_before():
    codec = codec_of(FAMILIES["gemma3"])
    system, before = (render_context("answer", QUESTION, MATERIAL, place) for place in ("system", "before"))
    assert codec.prompt(system.user, system.system) == codec.prompt(before.user)


@pytest.mark.parametrize("template", ["gemma2", "dropping"])
def test_a_template_without_a_system_role_is_refused_with_the_mend(small, template):
    family = FAMILIES["gemma2"]
    codec = codec_of(family) if template == "gemma2" else plain(template)
    model = LoadedModel(small.language_model, codec, "")
    spec = TeacherSpec("ctx:answer:system", "answer", place="system")
    with pytest.raises(GradalignError, match="no system role; write ctx:answer:before") as caught:
        opening_notices(model, {}, [spec])
    assert "\n" not in str(caught.value)
    assert opening_notices(model, {}, [TeacherSpec("ctx:answer:before", "answer", place="before")]) == ()


def test_thinking_is_the_same_switch_on_both_sides_and_moves_the_boundary():
    off, on = codec_of(FAMILIES["qwen3"]), codec_of(FAMILIES["qwen3 thinking"])
    assert off.switches()
    assert off.boundary("x")[: len(on.boundary("x"))] == on.boundary("x")
    assert off.shown(off.boundary("x")[len(on.boundary("x")) :]) == "<think>\n\n</think>\n\n"


def turned(opens: str):
    """A codec whose template ends every prompt, asked to or not, with `opens`, which may look at `quiet`."""
    codec = plain("moody")
    head = "{%- set quiet = messages[0].role == 'system' and '/quiet' in messages[0].content %}"
    codec.tokenizer = deepcopy(codec.tokenizer)
    codec.tokenizer.chat_template = head + "{%- for turn in messages %}[{{ turn.content }}]{%- endfor %}" + opens
    return codec


@pytest.mark.parametrize(
    "opens",
    [
        "{{ '/no' if quiet else '/yes' }}",  # whether it is asked to or not
        "{%- if add_generation_prompt %}{{ '<think>' if quiet else '' }}go{% endif %}",  # longer, with the same end
    ],
)
def test_openings_that_only_end_alike_are_not_alike(small, opens):
    model = LoadedModel(small.language_model, turned(opens), "")
    specs = (TeacherSpec("quiet", "answer", place="system"), TeacherSpec("ctx:answer", "answer"))
    cast = Cast(Member(model, HFEngine(small.language_model, frozenset())), specs)
    prompts, skips = teacher_prompts(cast, Question("q", "What?", "/quiet", "exact"), {}, 1)
    assert [p.teacher.name for p in prompts] == ["ctx:answer"]
    assert [s.teacher for s in skips] == ["quiet"]


def test_an_external_teacher_is_compared_under_the_system_message_that_it_gets(small):
    opens = "{%- if add_generation_prompt %}{{ 'S' if messages[0].role == 'system' else '' }}go{% endif %}"
    student, other = (LoadedModel(small.language_model, turned(opens), "") for _ in range(2))
    for place, count in (("after", 0), ("before", 0), ("system", 1)):
        specs = [TeacherSpec(name, "answer", model="m", place=place) for name in ("one", "two")]
        assert len([said for said in opening_notices(student, {"m": other}, specs) if "another opening" in said]) == count


def test_an_external_teacher_that_opens_its_answer_otherwise_is_named(small):
    student = LoadedModel(small.language_model, codec_of(FAMILIES["qwen3"]), "")
    other = LoadedModel(load_model("builtin:medium", LoadOptions(device="cpu")).language_model, plain("chatml"), "")
    spec = TeacherSpec("model:m", model="m")
    [notice] = opening_notices(student, {"m": other}, [spec])
    assert notice.startswith(
        "teacher builtin:medium opens its answer with '<|im_start|>assistant\\n', student builtin:small with "
    )
    assert "'<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n'" in notice
    assert "\n" not in notice
    assert opening_notices(student, {"m": LoadedModel(other.language_model, student.codec, "")}, [spec]) == ()


def test_what_a_template_does_with_thinking_is_said(small):
    def notices(codec):
        return opening_notices(LoadedModel(small.language_model, codec, ""), {}, [])

    assert "no switch for thinking" in notices(plain("chatml", thinking=True))[0]
    assert "opens the reasoning itself" in notices(plain("opens_thinking", bos="<|im_start|>"))[0]
    assert notices(codec_of(FAMILIES["qwen3"])) == notices(codec_of(FAMILIES["qwen3 thinking"])) == ()


def test_a_context_under_which_the_template_opens_the_answer_otherwise_is_skipped(small):
    model = LoadedModel(small.language_model, plain("moody"), "")
    specs = (TeacherSpec("quiet", "answer", place="system"), TeacherSpec("ctx:answer", "answer"))
    cast = Cast(Member(model, HFEngine(small.language_model, frozenset())), specs)
    moody = Question("q", "What?", "/quiet", "exact")
    prompts, skips = teacher_prompts(cast, moody, {}, 1)
    assert [p.teacher.name for p in prompts] == ["ctx:answer"]
    assert [(s.teacher, s.reason) for s in skips] == [
        ("quiet", "the chat template opens the answer otherwise than for the student")
    ]


@pytest.mark.parametrize(("template", "family"), [("llama3", "llama3"), ("dated", "chatml")])
def test_prompts_do_not_depend_on_the_day(small, template, family):
    """Both with a date that can be given and with one that templates ask for themselves; each would say today's."""
    codec = plain(template, FAMILIES[family].special, bos=FAMILIES[family].bos)
    today = str(datetime.now().year)
    assert today in codec.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    shown = codec.shown(codec.prompt("x"))
    assert "26 Jul" in shown
    assert "2024" in shown
    assert today not in shown
    [notice] = opening_notices(LoadedModel(small.language_model, codec, ""), {}, [])
    assert "says what day it is" in notice


def rollout(index: int, text: str) -> Rollout:
    tokens = np.array(codec_of(FAMILIES["chatml"]).ids(text))
    return Rollout(index, Completion(0, index, tokens, np.zeros(len(tokens)), "stop"), text, grade(QUESTION, text))


def test_reasoning_that_the_prompt_opened_is_neither_graded_nor_shown():
    """After DeepSeek-R1's template a rollout begins inside the reasoning, without the opening tag."""
    text = "First I think Answer: 41.\n</think>\n\n12 + 30 = 42. Answer: 42"
    assert stated_answer(text) == "42"
    assert spoken(text) == "12 + 30 = 42. Answer: 42"
    assert render_context("correct_demo", QUESTION, Material(correct=text)).user.count("41") == 0
    codec = plain("opens_thinking", bos="<|im_start|>")
    assert codec.shown(codec.boundary("x", "s")) == codec.shown(codec.boundary("x")) == "<|Assistant|><think>\n"


@pytest.mark.parametrize(("template", "tag"), [("opens_thinking", "<think>"), ("qwen3", ""), ("chatml", "")])
def test_reasoning_that_the_template_opened_and_the_rollout_did_not_close_is_not_graded(small, monkeypatch, template, tag):
    codec = plain(template, bos="<|im_start|>")
    tokens = np.array(codec.ids("Half of it is 42. Answer: 42"))
    said = Completion(0, 0, tokens, np.zeros(len(tokens)), "length")
    engine = HFEngine(small.language_model, frozenset())
    monkeypatch.setattr(engine, "complete", lambda requests: [said])
    member = Member(LoadedModel(small.language_model, codec, ""), engine)
    assert member.thinks == tag
    sampling = Sampling(0, 8, Silent())
    [[base]] = sample_rollouts(member, [QUESTION], [codec.prompt("?")], "base", 1, sampling)
    targeted = _targeted(QUESTION, Branch(0, 0, (), None), 0, said, member)
    assert {base.grade.outcome, targeted.grade.outcome} == {"ungradable" if tag else "right"}
    assert base.text.startswith("Half")


def test_a_demonstration_says_something_beside_its_reasoning():
    unfinished, silent = "<think>\nso it is 42. Answer: 42", "Answer: 42</think>"
    assert spoken(unfinished) == spoken(silent) == ""
    by_own_function = replace(rollout(0, unfinished), grade=Grade(1.0, "right", "42"))
    pool = Pool([by_own_function, rollout(1, THOUGHT)])
    assert pool.first("right") == THOUGHT
