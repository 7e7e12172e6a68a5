"""Sampling for a group of questions: base rollouts, demonstrations, summaries. Every seed comes from what it samples."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gradalign.contexts import render_summary_request, spoken
from gradalign.pipeline.cast import Member
from gradalign.pipeline.faults import blaming
from gradalign.pipeline.progress import Progress
from gradalign.seeds import seed_of
from gradalign.types import Completion, CompletionRequest, Question, Rollout


@dataclass(frozen=True)
class Sampling:
    """What every request of a run shares."""

    seed: int
    max_tokens: int
    progress: Progress


@dataclass(eq=False)
class Pool:
    """Demonstrations of one question from one model, and the summary of the first correct one, if any."""

    rollouts: list[Rollout]
    summary: str | None = None
    summary_tokens: int = 0
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = sum(len(rollout.completion.tokens) for rollout in self.rollouts)

    def first(self, outcome: str) -> str | None:
        """Text of the first rollout of that outcome that was not cut off and says something beside hidden reasoning."""
        found = (r.text for r in self.rollouts if r.grade.outcome == outcome and r.completion.stop == "stop" and spoken(r.text))
        return next(found, None)


def sample_rollouts(
    member: Member,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    purpose: str,
    count: int,
    sampling: Sampling,
) -> list[list[Rollout]]:
    """`count` graded rollouts of each question, in the order of their replicate numbers."""
    requests = [
        CompletionRequest(
            prompt, tuple(seed_of(sampling.seed, question.id, purpose, i) for i in range(count)), sampling.max_tokens
        )
        for question, prompt in zip(questions, prompts, strict=True)
    ]
    found: list[dict[int, Rollout]] = [{} for _ in questions]
    for completion in member.engine.complete(requests):
        with blaming(questions[completion.request]):
            text = member.model.codec.text(completion.tokens)
            graded = member.graded(questions[completion.request], text)
        found[completion.request][completion.replicate] = Rollout(completion.replicate, completion, text, graded)
        sampling.progress.advance(1)
    return [[rollouts[i] for i in sorted(rollouts)] for rollouts in found]


def summarise(member: Member, questions: Sequence[Question], pools: Sequence[Pool], sampling: Sampling) -> None:
    """Have the model condense the first correct demonstration of each question that has one."""
    asked = [(q, pool, text) for q, pool in zip(questions, pools, strict=True) if (text := pool.first("right")) is not None]
    requests = [
        CompletionRequest(
            member.model.codec.prompt(render_summary_request(question, text)),
            (seed_of(sampling.seed, question.id, "summary"),),
            sampling.max_tokens,
        )
        for question, _, text in asked
    ]
    window = member.model.language_model.context_window
    fitting = [i for i, request in enumerate(requests) if len(request.prefix) + sampling.max_tokens <= window]
    for completion in member.engine.complete([requests[i] for i in fitting]):
        _keep_summary(asked[fitting[completion.request]][1], completion, member)


def _keep_summary(pool: Pool, completion: Completion, member: Member) -> None:
    pool.summary_tokens = len(completion.tokens)
    text = member.model.codec.text(completion.tokens).strip()
    if text and completion.stop == "stop":
        pool.summary = text
