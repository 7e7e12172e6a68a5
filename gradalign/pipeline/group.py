"""A group of questions from prompts to rows: the order of the steps, each named, each in a room of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gradalign.configurations import parse_tokens
from gradalign.models import token_pieces
from gradalign.objectives import Objective, parse_objective
from gradalign.pipeline.budget import Budget
from gradalign.pipeline.cast import Cast
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.faults import blaming
from gradalign.pipeline.outcomes import Teaching, outcomes_of
from gradalign.pipeline.passing import passing
from gradalign.pipeline.progress import Progress
from gradalign.pipeline.prompts import student_prompt
from gradalign.pipeline.restore import Stored
from gradalign.pipeline.result import QuestionResult, Scored
from gradalign.pipeline.rows import Rows, question_rows
from gradalign.pipeline.samples import cast_teachers, sample_base, sample_teachers
from gradalign.pipeline.scoring import Brought, Step, gather, gather_evidence, score_full, score_visited, steps_of, total_scores
from gradalign.pipeline.survey import Survey, SurveyRequest, survey_nodes
from gradalign.pipeline.targeted import Footing, Plan, Targeting, footing, plan, plan_branches, sample_targeted
from gradalign.schedule import Reference
from gradalign.store import TABLES
from gradalign.tree import PrefixTree, build_tree
from gradalign.types import REWARDS, GradalignError, Question, Rollout, Skip

SET_ASIDE = "set aside after three tries"


@dataclass(frozen=True)
class Spending:
    """The budget of a run, over how many questions it is spread, and the pairs of teacher and objective that no rollout is meant for."""

    budget: Budget
    questions: int
    dropped: frozenset[tuple[str, str]] = frozenset()

    def drops(self, teacher: str, objective: str) -> bool:
        """Is no rollout meant for this pair, or for the objective where it needs no teacher?"""
        return bool({(teacher, objective), (REWARDS, objective)} & self.dropped)


def planned_units(config: RunConfig, pools: int, budget: Budget, questions: int, held: bool) -> int:
    """Units of work a question: one forward pass a teacher as long as the base rollouts, targeted rollouts, and what is not yet held."""
    filtering = 0 if config.filter is None else config.filter_rollouts
    fresh = filtering + config.rollouts + config.demonstrations * pools + config.teacher_rollouts * len(config.teachers)
    sampled = 0 if held else fresh
    targeted = budget.amount
    if budget.unit == "tokens":
        targeted = max(0, budget.amount // questions - sampled * config.longest // 2) * 4 // config.longest
    return sampled + config.rollouts * (1 + len(config.teachers)) + targeted


def score_group(
    places: Sequence[tuple[int, Question]],
    cast: Cast,
    config: RunConfig,
    spending: Spending,
    progress: Progress,
    stored: Mapping[str, Stored],
    left_out: Mapping[str, str] | None = None,
) -> Rows:
    """Score questions, each with its place in the set, and return their rows by table.

    What is `stored` of them is not sampled again; those `left_out` are skipped for the reason given.
    """
    left_out = left_out or {}
    results = score_questions([p for p in places if p[1].id not in left_out], cast, config, spending, progress, stored)
    for order, question in places:
        if question.id in left_out:
            skip = Skip(question.id, None, SET_ASIDE, left_out[question.id])
            results.append(QuestionResult(question, order, skips=[skip]))
    found = []
    for result in results:
        with blaming(result.question):
            found.append(question_rows(result, config))
    return {table: pa.concat_tables(rows[table] for rows in found) for table in TABLES}


def score_questions(
    places: Sequence[tuple[int, Question]],
    cast: Cast,
    config: RunConfig,
    spending: Spending,
    progress: Progress,
    stored: Mapping[str, Stored],
) -> list[QuestionResult]:
    """Everything found for questions, before it is arranged in rows."""
    results = [QuestionResult(question, order) for order, question in places]
    prompts = _student_prompts(results, cast, config)
    open_results = passing(
        [result for result in results if result.question.id in prompts], prompts, cast, config, progress, stored
    )
    sample_base([r for r in open_results if r.question.id not in stored], prompts, cast, config, progress)
    for result in open_results:
        if result.question.id in stored:
            _restore(result, stored[result.question.id])
        result.pieces = [token_pieces(cast.student.model.codec, rollout.completion.tokens) for rollout in result.rollouts]
    fresh = [result for result in open_results if result.question.id not in stored]
    cast_teachers(fresh, cast, config)
    if config.teacher_rollouts:
        sample_teachers(fresh, cast, config, progress)
    cast.rest()
    surveyed: list[tuple[QuestionResult, _Surveyed]] = []
    for result in open_results:
        progress.stage("forward passes")
        with blaming(result.question):
            found = _survey(result, prompts[result.question.id], cast, config)
        surveyed += [] if found is None else [(result, found)]
        progress.advance(config.rollouts * (1 + len(config.teachers)))
    progress.stage("targeted rollouts")
    targetings = []
    for result, found in surveyed:
        # a question alone in its part is measured by itself, at the price of a small bias
        others = [other.ground.reference for _, other in surveyed if other is not found] or [found.ground.reference]
        prompt, known = prompts[result.question.id], stored.get(result.question.id)
        with blaming(result.question):
            targetings.append(_target(result, found, prompt, Reference.mean(others), cast, config, spending, known))
    sample_targeted(targetings, cast.student, config, progress.advance)
    cast.rest()
    progress.stage("scores")
    for (result, found), targeting in zip(surveyed, targetings, strict=True):
        with blaming(result.question):
            _score(result, found, targeting, prompts[result.question.id], cast, config)
    return results


def _student_prompts(results: Sequence[QuestionResult], cast: Cast, config: RunConfig) -> dict[str, tuple[int, ...]]:
    """The student's prompt of each question that leaves room for a rollout; the others are skipped."""
    prompts = {}
    for result in results:
        with blaming(result.question):
            found = student_prompt(cast, result.question, config.longest)
        if isinstance(found, Skip):
            result.skips.append(found)
        else:
            prompts[result.question.id] = found
    return prompts


def _restore(result: QuestionResult, stored: Stored) -> None:
    result.rollouts, result.pools, result.prompts = stored.rollouts, stored.pools, stored.prompts
    result.taught = stored.taught
    result.skips, result.other_tokens = list(stored.skips), stored.other_tokens


@dataclass(frozen=True, eq=False)
class _Surveyed:
    """A question between the pass over the vocabulary and its targeted rollouts."""

    tree: PrefixTree
    survey: Survey
    ground: Footing


def _survey(result: QuestionResult, prompt: tuple[int, ...], cast: Cast, config: RunConfig) -> _Surveyed | None:
    """The pass over the vocabulary; None if no teacher is left."""
    if not result.prompts:
        return None
    sequences = [rollout.completion.tokens for rollout in result.rollouts]
    reward = np.array([rollout.grade.reward for rollout in result.rollouts])
    tree = build_tree(sequences)
    student = (cast.student.model.language_model, prompt)
    teachers = {p.teacher.name: (cast.member(p.teacher.model).model.language_model, p.tokens) for p in result.prompts}
    try:
        request = SurveyRequest(tree, sequences, reward, student, teachers)
        survey = survey_nodes(request, _objectives(config), config.candidates, [parse_tokens(spec) for spec in config.tokens])
    except GradalignError as error:
        raise GradalignError(f"question {result.question.id!r}: {error}") from error
    lengths = np.array([len(sequence) for sequence in sequences])
    return _Surveyed(tree, survey, footing(tree, survey, lengths, cast.student.model.codec.stop_ids, config))


def _target(
    result: QuestionResult,
    found: _Surveyed,
    prompt: tuple[int, ...],
    reference: Reference,
    cast: Cast,
    config: RunConfig,
    spending: Spending,
    stored: Stored | None,
) -> Targeting:
    """The plan of a question's targeted rollouts, with those that are stored already."""
    allowance = spending.budget.allowance(spending.questions, result.other_tokens)
    meant = [[not spending.drops(p.teacher.name, objective) for objective in config.objectives] for p in result.prompts]
    chosen = plan(result.question, found.survey, found.ground, reference, config, allowance, np.array(meant))
    branches = plan_branches(found.tree, found.survey, chosen, cast.student.model.codec.stop_ids)
    targeting = Targeting(result.question, prompt, chosen, branches, _success_elsewhere(result.rollouts, found, chosen))
    if stored is not None:
        targeting.restore(stored.targeted, found.tree)
    return targeting


def _success_elsewhere(rollouts: Sequence[Rollout], found: _Surveyed, chosen: Plan) -> np.ndarray:
    """For each candidate, the mean reward of the base rollouts that did not take it, with one more of reward a half: (M, K)."""
    reward = np.array([rollout.grade.reward for rollout in rollouts])
    took = _taken(found, chosen.tokens_MK, chosen.rows, np.ones(len(reward)))
    won = _taken(found, chosen.tokens_MK, chosen.rows, reward)
    return (reward.sum() - won + 0.5) / (len(reward) - took + 1)


def _taken(found: _Surveyed, tokens_MK: np.ndarray, rows: np.ndarray, weight_R: np.ndarray) -> np.ndarray:
    """Sum of `weight_R` over the base rollouts that took each token at each chosen node."""
    tree = found.tree
    child = tree.child(np.broadcast_to(found.survey.nodes[rows][:, None], tokens_MK.shape), tokens_MK)
    return np.where(child >= 0, tree.branch_sums(tree.path_RT >= 0, weight_R)[child], 0.0)


def _score(
    result: QuestionResult,
    found: _Surveyed,
    targeting: Targeting,
    prompt: tuple[int, ...],
    cast: Cast,
    config: RunConfig,
) -> None:
    tree, survey, chosen = found.tree, found.survey, targeting.plan
    result.targeted = targeting.rollouts
    codec, student = cast.student.model.codec, cast.student.model.language_model
    rows, objectives = chosen.rows, _objectives(config)
    gathered = gather(tree, result.rollouts, result.targeted, survey, codec.stop_ids, config.longest)
    evidence = gather_evidence(gathered, survey, rows, config.min_visits)
    visits = found.ground.visits_N
    weight_M = visits[rows] / chosen.inclusion_N[rows]
    totals = total_scores(survey, gathered, chosen)
    ideal_W = [] if totals.ideal_NK is None else steps_of(survey, totals.ideal_NK, student)
    teachers = [
        Teaching(cast.member(p.teacher.model).model.language_model, p.tokens, result.taught.get(p.teacher.name, ()))
        for p in result.prompts
    ]
    outcomes = outcomes_of(objectives, teachers, survey, gathered, evidence, ideal_W, Teaching(student, prompt))
    brought = outcomes.brought
    reward = np.array([rollout.grade.reward for rollout in result.rollouts])
    took, advantage = (_taken(found, evidence.tokens_MK, rows, w) for w in (np.ones(len(reward)), reward - reward.mean()))
    full = score_full(survey, evidence, brought)
    result.scored = Scored(
        tree=tree,
        survey=survey,
        plan=chosen,
        evidence=evidence,
        full=full,
        visited=score_visited(survey, evidence, objectives, took, advantage, brought),
        totals=totals,
        dot_CO=totals.dot_CO + (weight_M * full.dot_added_COM).sum(-1),
        d_norm2_CO=(visits * survey.direction_norm2_CON).sum(-1) + (weight_M * full.norm2_added_COM).sum(-1),
        steps=_whole_steps(survey, brought),
        ideal=ideal_W[0] if ideal_W else None,
        pairs=outcomes.pairs,
        visits_N=visits,
        weight_M=weight_M,
        token_texts={int(token): codec.text([int(token)]) for token in np.unique(evidence.tokens_MK) if token >= 0},
    )


def _whole_steps(survey: Survey, brought: Mapping[tuple[int, int], Brought]) -> dict[tuple[int, int, int], Step]:
    """Steps by the places of token weighting, teacher and objective, with what rollouts bring to them; those that cannot be told miss."""
    found = {}
    for w, c, o in np.ndindex(*survey.step_WCOL.shape[:3]):
        step = Step(survey.step_WCOL[w, c, o], survey.shift_WCOF[w, c, o])
        more = brought.get((c, o))
        if more is None or more.sampled:
            found[w, c, o] = step
        elif more.steps_W and (brings := more.steps_W[w]) is not None:
            found[w, c, o] = step + brings
    return found


def _objectives(config: RunConfig) -> list[Objective]:
    return [parse_objective(spec) for spec in config.objectives]
