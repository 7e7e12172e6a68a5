"""Targets that read one text: specs on the command line, question files, answers, templates and training configurations."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.making import changed, decoded, deep, hostile_text, mutated, objects, words, written
from fuzz.target import NotRead, Target
from gradalign.api import configure, default_folder
from gradalign.builtin import builtin_path
from gradalign.configurations import load_configurations, parse_questions, parse_tokens
from gradalign.contexts import Material, needed_material, parse_teacher, render_context
from gradalign.endpoint import parse_address
from gradalign.models import ChatCodec, LoadOptions, load_model, read_placement, resolve_model
from gradalign.models.span import turn_tokens
from gradalign.objectives import parse_objective
from gradalign.pipeline import Effort, Execution, parse_budget
from gradalign.plugins import imported
from gradalign.questions import KINDS, grade, load_questions
from gradalign.store.places import place_of
from gradalign.types import GradalignError, Question

_CONTEXTS = ("none", "correct_demo", "correct_wrong_demo", "wrong_demo", "summary", "reference", "answer")
_PLACES = (":system", ":before", ":after")
_OBJECTIVES = ("reverse_kl", "gkd", "forward_kl", "jsd", "sampled_kl", "minillm", "pbsd_target", "pbsd", "dr_grpo", "success")
_MODELS = (
    "builtin:small",
    "builtin:",
    "Qwen3-0.6B",
    "org/name",
    "./x",
    "server:http://127.0.0.1:1",
    "server:https://h:1/v1#m",
    ".gguf",
)
_QUESTION = {
    "id": ["q1", 7],
    "question": ["What is 2+2?"],
    "answer": ["4", 4, "yes", True, "A", "1/3"],
    "kind": [*KINDS, None],
    "choices": [["a", "b"], []],
    "solution": ["2+2=4"],
    "difficulty": ["easy", 1],
}
_SAID = (
    "Answer:",
    "answer is",
    "\\boxed{",
    "}",
    "{",
    "</think>",
    "1,234.5",
    "-3/4",
    "yes",
    "(A)",
    "=",
    "\n",
    "50%",
    "1e9",
    "\\frac{1}{2}",
    "$",
    " the ",
    "9" * 60,
    "/",
    "\u2212",
)


def _argument(parse: Callable[[str], Any]) -> Callable[[bytes, Path], None]:
    return lambda case, folder: parse(decoded(case))


def _file(name: str, parse: Callable[[Path], Any]) -> Callable[[bytes, Path], None]:
    """`parse` of a file that holds the case."""

    def read(case: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(case)
        parse(path)

    return read


def _configurations(path: Path) -> None:
    """As the command takes them: read, and every objective of theirs parsed."""
    for configuration in load_configurations(path):
        for objective in configuration.objectives:
            parse_objective(objective)


def _settings(case: bytes, folder: Path) -> None:
    """A run's settings together, and the folder that they would be written to."""
    texts = decoded(case).split("\n")
    texts += [""] * (len(_RIGHT) - len(texts))
    config = configure(texts[0], texts[1], (texts[2],), (texts[3],))
    place = default_folder(config)
    if ".." in place.parts or place.is_absolute() or len(place.name.encode()) > 255:
        raise AssertionError(f"settings lead to {place}")
    Effort(parse_budget(texts[4]))
    Execution(engine=texts[5], load=texts[6])


def _context(case: bytes, folder: Path) -> None:
    """A template of the user's own, from a file to a prompt."""
    path = folder / "mine.j2"
    path.write_bytes(case)
    needed_material(str(path))
    question = Question("q", "What is {{ 2 }}?", "4", "choice", ("a", "b"))
    render_context(str(path), question, Material("right", "<think>x</think>wrong", "short", "worked", "4"))


@cache
def small_codec() -> ChatCodec:
    """The codec of the smallest built-in student."""
    codec = load_model("builtin:small", LoadOptions(device="cpu")).codec
    assert isinstance(codec, ChatCodec)
    return codec


def _chat(case: bytes, folder: Path) -> None:
    """A chat template as it comes with a model, to the ids of a prompt and of a finished turn."""
    codec = small_codec()
    before = codec.tokenizer.chat_template
    codec.tokenizer.chat_template = decoded(case)
    try:
        found = ChatCodec(codec.tokenizer, codec.name, codec.stop_ids)
        found.prompt("What is {{ 2 }}? <|im_end|>")
        turn_tokens(found)
    finally:
        codec.tokenizer.chat_template = before


def _graded(case: bytes, folder: Path) -> None:
    """What a model may say, graded as every kind of question; a reward is 0 or 1 and goes with its outcome."""
    said = case.decode("utf-8", "replace")
    for kind in KINDS:
        found = grade(Question("q", "?", _ANSWERS[kind], kind, ("one", "two") if kind == "choice" else ()), said)
        if (found.reward == 1) != (found.outcome == "right") or found.reward not in (0, 1):
            raise AssertionError(f"{kind}: {found}")


_ANSWERS = {"numeric": "1234.5", "boolean": "yes", "choice": "A", "exact": "a b", "math": "\\frac{1}{2}", "regex": "a+b"}


def _place(case: bytes, folder: Path) -> None:
    """Where a run is to lie; nothing is opened."""
    text = decoded(case)
    if text.startswith(("http", "s3", "gs", "ftp", "ssh", "sftp", "hdfs", "abfs", "az", "github")):
        raise NotRead
    place_of(text)


def _plugin(case: bytes, folder: Path) -> None:
    """A function's name; modules are those of a folder that holds some that fail in every way."""
    for name, text in _MODULES.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    before = os.getcwd()
    os.chdir(folder)
    try:
        imported(decoded(case))
    finally:
        os.chdir(before)


_MODULES = {
    "fuzz_raises": "raise RuntimeError('one\\ntwo\\x1b[2J')",
    "fuzz_leaves": "raise SystemExit(3)",
    "fuzz_syntax": "def f(:",
    "fuzz_good": "f = len\nx = 3",
    "fuzz_missing": "import nowhere_at_all",
}
_BLOCKS = (
    "{{ prompt }}",
    "{{ answer }}",
    "{{ correct }}",
    "{{ solution }}",
    "{% for x in range(9) %}",
    "{% endfor %}",
    "{% if answer %}",
    "{% endif %}",
    "{{",
    "}}",
    "{%",
    "%}",
    "{# x #}",
    "{{ ''.__class__.__mro__ }}",
    "{{ self }}",
    "{% include '/etc/passwd' %}",
    "{% import 'x' as y %}",
    "{{ range(10**9) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ prompt|attr('__class__') }}",
    "{% set x = answer %}",
    "{{ x.y.z }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 1/0 }}",
    "{% raw %}",
    "{{ namespace(a=1).a }}",
    "{{ lipsum(n=1000000000) }}",
    "{{ [1, 2]|slice(1000000000)|list }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "text",
)
_CHAT = (
    "{% for message in messages %}",
    "{{ message['content'] }}",
    "{{ message.role }}",
    "<|im_start|>",
    "{% if add_generation_prompt %}",
    "{% if messages[-1].role == 'assistant' %}",
    "{{ raise_exception('no\nway\x1b[2J') }}",
    "{{ strftime_now('%Y') }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{{ messages[9].content }}",
    "{% break %}",
    "{{ tools }}",
    "{{ bos_token }}",
)
_YAML = (
    b"- {name: a, teacher: 'ctx:reference', objective: reverse_kl}\n- {name: b, objective: dr_grpo}\n",
    b"configurations:\n  - name: paced\n    teacher: ctx:correct_demo\n    objective: [forward_kl, reverse_kl]\n    step: 1\n"
    b"    questions: paced:1:1\n    tokens: entropy_top:0.2\n    temperature: 0.5\n",
    b"&a [*a, !!python/object/apply:os.system ['id'], {<<: *a}]\n",
    b'- &x {name: !!binary aGk=, objective: "\\x1b[2J\\u202e"}\n- {? [a, b] : c}\n',
)
_RECORDS = [
    {key: right[0] for key, right in _QUESTION.items() if key != "kind"},
    {"question": "Is it?", "answer": True},
    {"question": "Which?", "answer": "B", "choices": ["x", "y", "z"]},
    {"question": "Half?", "answer": "1/2", "kind": "numeric"},
]


def _lines(record: Any) -> bytes:
    return written(record) + b"\n" + written(_RECORDS[1])


def _builtin_lines() -> bytes:
    return b"".join((builtin_path("questions") / "arithmetic" / "train.jsonl").read_bytes().splitlines(keepends=True)[:3])


def _checked_teacher(spec: str) -> None:
    if parse_teacher(spec).name != spec:
        raise AssertionError("a teacher has another name than was given")


def _placed(text: str) -> None:
    read_placement(text.split("\n"))


def _refused_as_numbers(parse: Callable[[str], Any]) -> Callable[[str], None]:
    """A weighting that is taken can be written down and read again."""

    def check(text: str) -> None:
        if parse(str(parse(text))) is None:
            raise GradalignError("nothing")

    return check


_SETTINGS = (*_CONTEXTS, *_PLACES, *_MODELS, "ctx:", "model:", "64", *_OBJECTIVES, "in-turn", "auto")
_RIGHT = (b"builtin:arithmetic", b"builtin:small", b"ctx:answer", b"reverse_kl", b"64", b"auto", b"together")
_LINES = [_lines(record) for record in _RECORDS]
TARGETS = [
    Target(
        "teacher",
        words("ctx:", "model:", "+", "@", ":", "mine.j2", *_CONTEXTS, *_PLACES, *_MODELS),
        _argument(_checked_teacher),
        6,
        [b"ctx:correct_demo@model:x/y", b"server:http://h#m+ctx:answer", b"ctx:answer:system"],
    ),
    Target(
        "objective",
        words(*_OBJECTIVES, ":", "0.5", "@", "*", "1", "normalised"),
        _argument(parse_objective),
        6,
        [b"minillm:0.9:normalised", b"reverse_kl@forward_kl*1"],
    ),
    Target(
        "token weighting",
        words("all", "entropy_top", ":", "0.2", "incorrect_paths"),
        _argument(_refused_as_numbers(parse_tokens)),
        3,
        [b"entropy_top:0.2"],
    ),
    Target(
        "question weighting",
        words("uniform", "paced", ":", "1", "0.5"),
        _argument(_refused_as_numbers(parse_questions)),
        3,
        [b"paced:1:1"],
    ),
    Target(
        "budget",
        words("64", "200", "k", "M", "-", "tokens", "rollouts-per-question", "."),
        _argument(parse_budget),
        4,
        [b"200k-tokens"],
    ),
    Target("placement", words("student", "=", "cuda:0", "\n"), _argument(_placed), 3, [b"student=cuda:0\nx=cpu"]),
    Target(
        "address",
        words("server:", "http://", "h", ":", "80", "#", "m", "/v1", "@", "?", "[::1]"),
        _argument(parse_address),
        5,
        [b"server:http://h:80/v1#m"],
    ),
    Target(
        "model name",
        words(*_MODELS, "/", "~", "..", "Qwen", "smal", "@", "@main", "@0123456789abcdef"),
        _argument(resolve_model),
        5,
        [b"org/name@v1.0", b"Qwen3-0.6", b"builtin:smal", b"builtin:small@main"],
    ),
    Target(
        "place of a run",
        words("runs/", "memory://", "s3:", "file://", "~", "x", "local://", "::", "zip", "@", "?", "MEMORY://"),
        _place,
        3,
        [b"memory://a/b"],
        guided=False,
    ),
    Target(
        "plugin",
        words(*_MODULES, ":", "f", "x", ".", "os", "path", "__"),
        _plugin,
        2,
        [b"fuzz_good:f", b"os.path:join"],
        guided=False,
    ),
    Target(
        "settings",
        st.tuples(*(st.one_of(*[st.just(right)] * 4, words(*_SETTINGS)) for right in _RIGHT)).map(b"\n".join),
        _settings,
        4,
        [b"\n".join(_RIGHT)],
    ),
    Target(
        "questions jsonl",
        st.one_of(objects(_QUESTION).map(_lines), changed(_RECORDS, _lines), mutated([*_LINES, _builtin_lines()]), deep()),
        _file("q.jsonl", lambda path: load_questions(str(path))),
        8,
        [_builtin_lines(), *_LINES],
    ),
    Target(
        "answers",
        st.one_of(
            words(*_SAID),
            mutated([b"so 3.\nAnswer: 1,234.5", b"\\boxed{\\frac{1}{2}}"]),
            st.sampled_from(_SAID).map(lambda s: s.encode() * 5000),
        ),
        _graded,
        8,
        [b"<think>x</think>Answer: (A) one", b"The answer is \\boxed{-3/4}."],
    ),
    Target(
        "context template",
        st.one_of(words(*_BLOCKS), mutated([b"{{ prompt }}\n{% if correct %}{{ correct }}{% endif %}"]), deep()),
        _context,
        4,
        [b"{{ prompt }} {{ answer }}"],
        guided=False,
    ),
    Target(
        "chat template",
        st.one_of(words(*_CHAT, *_BLOCKS), words(*_CHAT, "{% endfor %}", "{% endif %}"), deep()),
        _chat,
        4,
        [b"{% for message in messages %}{{ message['content'] }}{% endfor %}"],
        guided=False,
    ),
    Target(
        "yaml configurations",
        st.one_of(
            mutated(_YAML),
            words("- ", "name: a\n", "objective: reverse_kl\n", "  ", "{", "}", "[", "]", ": ", "&a", "*a", "!!x", "|", "\n"),
            deep(),
        ),
        _file("c.yaml", _configurations),
        7,
        _YAML,
    ),
    Target(
        "hostile id",
        hostile_text.map(lambda text: _lines({"id": text, "question": "Is it?", "answer": True})),
        _file("q.jsonl", lambda path: load_questions(str(path))),
        1,
    ),
]
