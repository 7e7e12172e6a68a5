"""A group of questions from prompts to rows: the order of the steps, each named, each in a room of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradalign.contexts import needed_material, render_question
from gradalign.objectives import Objective, parse_objective
from gradalign.pipeline.cast import Cast
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.progress import Progress
from gradalign.pipeline.prompts import teacher_prompts
from gradalign.pipeline.rollouts import Pool, Sampling, sample_rollouts, summarise
from gradalign.pipeline.rows import QuestionResult, Rows, Scored, question_rows
from gradalign.pipeline.scoring import gather_evidence, score_full, score_visited
from gradalign.pipeline.survey import Survey, SurveyRequest, survey_nodes
from gradalign.pipeline.targeted import Plan, TargetedSampling, branches, plan, sample_targeted
from gradalign.store import TABLES
from gradalign.tree import PrefixTree, build_tree
from gradalign.types import GradalignError, Question, Skip

_NO_ROOM = "question longer than the student's window"
_NO_TEACHER = "no teacher could be built"


def planned_units(config: RunConfig, pools: int) -> int:
    """Units of work a question: base rollouts, demonstrations, one forward pass a teacher as long as they, targeted rollouts."""
    return config.rollouts * (2 + len(config.teachers)) + config.demonstrations * pools + config.budget


def sources(cast: Cast) -> list[str | None]:
    """Models that demonstrations are wanted from; None is the student."""
    wanted = {t.source for t in cast.teachers if {"correct", "wrong", "summary"} & {*needed_material(t.context)}}
    return sorted(wanted, key=lambda name: name or "")


def score_group(
    orders: Sequence[int], questions: Sequence[Question], cast: Cast, config: RunConfig, progress: Progress
) -> Rows:
    """Score the questions (whose places in the set are `orders`) and return their rows by table."""
    results = [QuestionResult(question, order) for order, question in zip(orders, questions, strict=True)]
    prompts = _student_prompts(results, cast, config)
    open_results = [result for result in results if result.question.id in prompts]
    _sample_base(open_results, prompts, cast, config, progress)
    surveyed: list[_Surveyed | None] = []
    for result in open_results:
        progress.stage("forward passes")
        surveyed.append(_survey(result, prompts[result.question.id], cast, config))
        progress.advance(config.rollouts * (1 + len(config.teachers)))
    progress.stage("targeted rollouts")
    sample_targeted([found.sampling for found in surveyed if found], cast.student, config, progress.advance)
    for result, found in zip(open_results, surveyed, strict=True):
        if found is not None:
            _score(result, found, cast, config)
    rows: Rows = {table: [] for table in TABLES}
    for result in results:
        for table, more in question_rows(result, config).items():
            rows[table] += more
    return rows


def _student_prompts(results: Sequence[QuestionResult], cast: Cast, config: RunConfig) -> dict[str, tuple[int, ...]]:
    """The student's prompt of each question that leaves room for a rollout; the others are skipped."""
    prompts = {}
    model = cast.student.model
    for result in results:
        tokens = model.codec.prompt(render_question(result.question))
        window = model.language_model.context_window
        if len(tokens) + config.longest <= window:
            prompts[result.question.id] = tokens
        else:
            detail = f"{len(tokens)} tokens of prompt and {config.longest} of rollout in a window of {window}"
            result.skips.append(Skip(result.question.id, None, _NO_ROOM, detail))
    return prompts


def _sample_base(
    results: Sequence[QuestionResult], prompts: dict[str, tuple[int, ...]], cast: Cast, config: RunConfig, progress: Progress
) -> None:
    sampling = Sampling(config.seed, config.longest, progress)
    questions = [result.question for result in results]
    progress.stage("base rollouts")
    base = sample_rollouts(cast.student, questions, [prompts[q.id] for q in questions], "base", config.rollouts, sampling)
    pools: dict[str | None, list[Pool]] = {}
    for source in sources(cast):
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
    for i, result in enumerate(results):
        result.rollouts = base[i]
        result.pools = {source: pool[i] for source, pool in pools.items()}


@dataclass(frozen=True, eq=False)
class _Surveyed:
    """A question between the pass over the vocabulary and its scores."""

    tree: PrefixTree
    survey: Survey
    plan: Plan
    sampling: TargetedSampling


def _survey(result: QuestionResult, prompt: tuple[int, ...], cast: Cast, config: RunConfig) -> _Surveyed | None:
    """Teacher prompts, the pass over the vocabulary, and the plan of targeted rollouts; None if no teacher is left."""
    longest = max(len(rollout.completion.tokens) for rollout in result.rollouts)
    prompts, skips = teacher_prompts(cast, result.question, result.pools, longest)
    result.prompts = prompts
    result.skips += skips
    if not prompts:
        result.skips.append(Skip(result.question.id, None, _NO_TEACHER))
        return None
    sequences = [rollout.completion.tokens for rollout in result.rollouts]
    tree = build_tree(sequences)
    student = (cast.student.model.language_model, prompt)
    teachers = {p.teacher.name: (cast.member(p.teacher.model).model.language_model, p.tokens) for p in prompts}
    try:
        survey = survey_nodes(SurveyRequest(tree, sequences, student, teachers), _objectives(config), config.candidates)
    except GradalignError as error:
        raise GradalignError(f"question {result.question.id!r}: {error}") from error
    chosen = plan(result.question, tree, survey, config)
    wanted = branches(tree, survey, chosen, cast.student.model.codec.stop_ids, config.longest)
    return _Surveyed(tree, survey, chosen, TargetedSampling(result.question, prompt, wanted))


def _score(result: QuestionResult, found: _Surveyed, cast: Cast, config: RunConfig) -> None:
    tree, survey = found.tree, found.survey
    result.targeted = found.sampling.rollouts
    codec = cast.student.model.codec
    rows = found.plan.sample.chosen
    limits = (config.longest, config.min_visits)
    evidence = gather_evidence(tree, result.rollouts, result.targeted, survey, rows, codec.stop_ids, limits)
    result.scored = Scored(
        tree=tree,
        survey=survey,
        plan=found.plan,
        evidence=evidence,
        full=score_full(survey, evidence),
        visited=score_visited(survey, evidence, _objectives(config), _frequencies(tree, survey, evidence.tokens_MK, rows)),
        weight_M=tree.visits()[survey.nodes[rows]] / len(result.rollouts) / found.plan.sample.inclusion_N[rows],
        token_texts={int(token): codec.text([int(token)]) for token in np.unique(evidence.tokens_MK) if token >= 0},
    )


def _frequencies(tree: PrefixTree, survey: Survey, tokens_MK: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """How many base rollouts took each kept token at each chosen node."""
    taken = np.bincount(tree.path_RT[tree.path_RT >= 0], minlength=len(tree)).astype(np.float64)
    child = tree.child(np.broadcast_to(survey.nodes[rows][:, None], tokens_MK.shape), tokens_MK)
    return np.where(child >= 0, taken[child], 0.0)


def _objectives(config: RunConfig) -> list[Objective]:
    return [parse_objective(spec) for spec in config.objectives]
