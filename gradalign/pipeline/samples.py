"""What is sampled of questions before anything is measured of them: base rollouts, demonstrations, and teachers' own rollouts."""

from collections.abc import Sequence

from gradalign.contexts import needed_material, render_question
from gradalign.pipeline.cast import Cast
from gradalign.pipeline.config import RunConfig, sums_logprobs
from gradalign.pipeline.progress import Progress
from gradalign.pipeline.prompts import teacher_prompts
from gradalign.pipeline.result import QuestionResult
from gradalign.pipeline.rollouts import Pool, Sampling, sample_rollouts, summarise
from gradalign.types import Question, Skip, TeacherSpec

_NO_TEACHER = "no teacher could be built"


def sources(teachers: Sequence[TeacherSpec]) -> list[str | None]:
    """Models that demonstrations are wanted from; None is the student."""
    wanted = {t.source for t in teachers if {"correct", "wrong", "summary"} & {*needed_material(t.context)}}
    return sorted(wanted, key=lambda name: name or "")


def sample_base(
    results: Sequence[QuestionResult], prompts: dict[str, tuple[int, ...]], cast: Cast, config: RunConfig, progress: Progress
) -> None:
    """The student's rollouts of each question, and the demonstrations that contexts show."""
    sampling = Sampling(config.seed, config.longest, progress)
    questions = [result.question for result in results]
    progress.stage("base rollouts")
    base = sample_rollouts(cast.student, questions, [prompts[q.id] for q in questions], "base", config.rollouts, sampling)
    pools = sample_pools(questions, cast, config, progress)
    for i, result in enumerate(results):
        result.rollouts = base[i]
        result.pools = {source: pool[i] for source, pool in pools.items()}


def sample_pools(
    questions: Sequence[Question], cast: Cast, config: RunConfig, progress: Progress
) -> dict[str | None, list[Pool]]:
    """The demonstrations of each question by the model they are from, with summaries where a context shows them."""
    sampling = Sampling(config.seed, config.longest, progress)
    pools: dict[str | None, list[Pool]] = {}
    for source in sources(cast.teachers):
        progress.stage("demonstrations")
        member = cast.member(source)
        theirs = [member.model.codec.prompt(render_question(question)) for question in questions]
        purpose = "demonstration" if source is None else f"demonstration by {source}"
        window = member.model.language_model.context_window
        fitting = [i for i, prompt in enumerate(theirs) if len(prompt) + config.longest <= window]
        asked = [questions[i] for i in fitting]
        sampled = sample_rollouts(member, asked, [theirs[i] for i in fitting], purpose, config.demonstrations, sampling)
        found = dict(zip(fitting, sampled, strict=True))
        pools[source] = [Pool(found.get(i, [])) for i in range(len(questions))]
        if any(t.source == source and "summary" in needed_material(t.context) for t in cast.teachers):
            summarise(member, questions, pools[source], sampling)
    return pools


def cast_teachers(results: Sequence[QuestionResult], cast: Cast, config: RunConfig) -> None:
    """Teacher prompts of questions whose rollouts stand, and the tokens that were sampled for them.

    Where teachers sample, or read targeted rollouts to their end, the longest that there may be has to fit behind their prompts.
    """
    whole = config.teacher_rollouts > 0 or any(map(sums_logprobs, config.objectives))
    for result in results:
        longest = max(len(rollout.completion.tokens) for rollout in result.rollouts)
        room = config.longest if whole else longest
        result.prompts, skips = teacher_prompts(cast, result.question, result.pools, room, config.context_tokens)
        result.skips += skips
        result.other_tokens += sum(len(rollout.completion.tokens) for rollout in result.rollouts)
        result.other_tokens += sum(pool.tokens + pool.summary_tokens for pool in result.pools.values())
        if not result.prompts:
            result.skips.append(Skip(result.question.id, None, _NO_TEACHER))


def sample_teachers(results: Sequence[QuestionResult], cast: Cast, config: RunConfig, progress: Progress) -> None:
    """Every teacher's own rollouts of the questions that it can teach, under its own prompt."""
    progress.stage("teachers' rollouts")
    sampling = Sampling(config.seed, config.longest, progress)
    for teacher in cast.teachers:
        able = [(result, p.tokens) for result in results for p in result.prompts if p.teacher.name == teacher.name]
        questions, prompts = [result.question for result, _ in able], [tokens for _, tokens in able]
        purpose = f"teacher {teacher.name}"
        sampled = sample_rollouts(cast.member(teacher.model), questions, prompts, purpose, config.teacher_rollouts, sampling)
        for (result, _), rollouts in zip(able, sampled, strict=True):
            result.taught[teacher.name] = rollouts
            result.other_tokens += sum(len(rollout.completion.tokens) for rollout in rollouts)
