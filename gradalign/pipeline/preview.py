"""What each model would see of a question, before anything is scored: sampled as the run samples it, shown and thrown away."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradalign.contexts import render_question
from gradalign.models import Codec
from gradalign.pipeline.cast import Cast
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.progress import Progress
from gradalign.pipeline.prompts import student_prompt, teacher_prompts
from gradalign.pipeline.rollouts import Sampling, sample_rollouts
from gradalign.pipeline.samples import sample_pools
from gradalign.types import Message, Question, Skip


@dataclass(frozen=True)
class Sight:
    """A prompt as one model sees it: `prompt` with special tokens, then the `boundary`'s tokens, which open the answer, one text each.

    `length` counts the tokens of both, `private` those of the text that only a teacher sees (None where a template of one's own is the
    whole message), `cut` those that the length budget took out.
    """

    who: str
    prompt: str
    boundary: tuple[str, ...]
    length: int
    private: int | None = 0
    cut: int = 0


@dataclass(frozen=True)
class Preview:
    """A question with what student and teachers see of it, and the student's first rollout, which goes on behind every prompt."""

    question: Question
    sights: tuple[Sight, ...]
    skips: tuple[Skip, ...]
    completion: str = ""
    completion_tokens: int = 0


def preview(questions: Sequence[Question], cast: Cast, config: RunConfig, progress: Progress) -> list[Preview]:
    """What would be seen of each question. A context is left out here where it leaves no room for the first rollout."""
    asked = {question.id: student_prompt(cast, question, config.longest) for question in questions}
    fitting = [question for question in questions if not isinstance(asked[question.id], Skip)]
    prompts = [tokens for tokens in asked.values() if not isinstance(tokens, Skip)]
    sampling = Sampling(config.seed, config.longest, progress)
    base = sample_rollouts(cast.student, fitting, prompts, "base", 1, sampling)
    pools = sample_pools(fitting, cast, config, progress)
    found = []
    for question in questions:
        tokens = asked[question.id]
        if isinstance(tokens, Skip):
            found.append(Preview(question, (), (tokens,)))
            continue
        place = fitting.index(question)
        completion, mine = base[place][0].completion.tokens, {source: pool[place] for source, pool in pools.items()}
        taught, skips = teacher_prompts(cast, question, mine, len(completion), config.context_tokens)
        codec = cast.student.model.codec
        sights = [_sight("student", codec, Message(render_question(question)), tokens)]
        sights += [
            _sight(p.teacher.name, cast.member(p.teacher.model).model.codec, p.message, p.tokens, p.private, p.cut)
            for p in taught
        ]
        found.append(Preview(question, tuple(sights), tuple(skips), codec.shown(completion), len(completion)))
    return found


def _sight(who: str, codec: Codec, message: Message, tokens: tuple[int, ...], private: int | None = 0, cut: int = 0) -> Sight:
    opening = codec.boundary(message.user, message.system)
    before = tokens[: len(tokens) - len(opening)]
    return Sight(who, codec.shown(before), tuple(codec.shown([token]) for token in opening), len(tokens), private, cut)
