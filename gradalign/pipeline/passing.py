"""Questions by how often the student passes them, measured on rollouts of their own before anything is scored.

These rollouts are sampled under seeds of their own and never scored: were questions chosen by the rollouts that are scored, those
kept would be kept for their luck, and averages over them would be biased.
"""

from collections.abc import Mapping, Sequence

from gradalign.pipeline.cast import Cast, Member
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.pass_rates import PassRates, parse_filter
from gradalign.pipeline.progress import Progress
from gradalign.pipeline.restore import Stored
from gradalign.pipeline.result import QuestionResult
from gradalign.pipeline.rollouts import Sampling, sample_rollouts
from gradalign.types import Skip


def passing(
    results: Sequence[QuestionResult],
    prompts: Mapping[str, tuple[int, ...]],
    cast: Cast,
    config: RunConfig,
    progress: Progress,
    stored: Mapping[str, Stored],
) -> list[QuestionResult]:
    """The questions that the run's filter keeps, if it has one; those that are stored went through it before, as their rows say."""
    if config.filter is None:
        return list(results)
    fresh = [result for result in results if result.question.id not in stored]
    sampling = Sampling(config.seed, config.longest, progress)
    _leave_out(fresh, prompts, cast.student, parse_filter(config.filter), config.filter_rollouts, sampling)
    return [result for result in results if not result.skips]


def _leave_out(
    results: Sequence[QuestionResult],
    prompts: Mapping[str, tuple[int, ...]],
    student: Member,
    kept: PassRates,
    count: int,
    sampling: Sampling,
) -> None:
    """Sample `count` rollouts of each question, and skip those whose mean reward is outside the range; the tokens count as spent."""
    sampling.progress.stage("rollouts to filter by")
    questions = [result.question for result in results]
    sampled = sample_rollouts(student, questions, [prompts[q.id] for q in questions], "filter", count, sampling)
    for result, rollouts in zip(results, sampled, strict=True):
        result.other_tokens += sum(len(rollout.completion.tokens) for rollout in rollouts)
        reward = sum(rollout.grade.reward for rollout in rollouts)
        if not kept.low <= reward / count <= kept.high:
            result.skips.append(
                Skip(result.question.id, None, f"pass rate outside {kept.text}", f"{reward:g} of {count} right")
            )
