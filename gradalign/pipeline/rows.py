"""Rows of the run folder for one question, in the terms of `store.TABLES`. Only arranges; computes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradalign.contexts import render_question
from gradalign.objectives import parse_objective
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.outcomes import PairsSeen
from gradalign.pipeline.prompts import TeacherPrompt
from gradalign.pipeline.rollouts import Pool
from gradalign.pipeline.scoring import Evidence, Step, SupportScores, TotalScores
from gradalign.pipeline.survey import Survey
from gradalign.pipeline.targeted import Plan, TargetedRollout
from gradalign.pipeline.vocabulary import DIVERGENCES
from gradalign.schedule import depth_window
from gradalign.tree import PrefixTree
from gradalign.types import REWARDS, Completion, Grade, Question, Rollout, Skip

Rows = dict[str, list[dict[str, Any]]]


@dataclass(eq=False)
class Scored:
    """Everything found for the nodes of one question."""

    tree: PrefixTree
    survey: Survey
    plan: Plan
    evidence: Evidence
    full: SupportScores
    visited: SupportScores
    totals: TotalScores
    dot_CO: np.ndarray
    d_norm2_CO: np.ndarray
    steps: Mapping[tuple[int, int, int], Step]
    ideal: Step | None
    pairs: Mapping[tuple[int, int], PairsSeen]
    visits_N: np.ndarray
    weight_M: np.ndarray
    token_texts: Mapping[int, str]


@dataclass(eq=False)
class QuestionResult:
    """Everything found for one question; `scored` is None where no teacher could be had or no rollout made."""

    question: Question
    order: int
    rollouts: list[Rollout] = field(default_factory=list)
    pieces: list[list[str]] = field(default_factory=list)
    pools: Mapping[str | None, Pool] = field(default_factory=dict)
    taught: dict[str, list[Rollout]] = field(default_factory=dict)
    prompts: Sequence[TeacherPrompt] = ()
    skips: list[Skip] = field(default_factory=list)
    other_tokens: int = 0
    targeted: Sequence[TargetedRollout] = ()
    scored: Scored | None = None


def question_rows(result: QuestionResult, config: RunConfig) -> Rows:
    """All rows of one question, by table."""
    scored = result.scored
    return {
        "questions": [_question_row(result)],
        "contexts": [_context_row(result.question, prompt) for prompt in result.prompts],
        "rollouts": _rollout_rows(result, config),
        "nodes": [] if scored is None else _node_rows(result, scored),
        "branches": [] if scored is None else _branch_rows(result.question, scored),
        "directions": [] if scored is None else _direction_rows(result, scored, config),
        "teachers": [] if scored is None else _teacher_rows(result, scored),
        "alignment": [] if scored is None else _alignment_rows(result, scored, config),
        "scores": [] if scored is None else _score_rows(result, scored, config),
        "steps": [] if scored is None else _step_rows(result, scored, config),
        "skipped": [vars(skip) for skip in result.skips],
    }


def _question_row(result: QuestionResult) -> dict[str, Any]:
    question, rollouts = result.question, result.rollouts
    rewards = [rollout.grade.reward for rollout in rollouts]
    sampled = result.other_tokens + sum(len(rollout.completion.tokens) for rollout in result.targeted)
    return {
        "question": question.id,
        "order": result.order,
        "text": question.text,
        "choices": list(question.choices),
        "prompt": render_question(question),
        "answer": question.answer,
        "kind": question.kind,
        "difficulty": question.difficulty,
        "rollouts": len(rollouts),
        "pass_rate": float(np.mean(rewards)) if rewards else None,
        "right": sum(r.grade.outcome == "right" for r in rollouts),
        "ungradable": sum(r.grade.outcome == "ungradable" for r in rollouts),
        "truncated": sum(r.completion.stop == "length" for r in rollouts),
        "nodes": 0 if result.scored is None else len(result.scored.survey.nodes),
        "scored_nodes": 0 if result.scored is None else len(result.scored.evidence.rows),
        "targeted_rollouts": len(result.targeted),
        "sampled_tokens": sampled,
    }


def _context_row(question: Question, prompt: TeacherPrompt) -> dict[str, Any]:
    return {
        "question": question.id,
        "teacher": prompt.teacher.name,
        "message": prompt.message.user,
        "system": prompt.message.system,
        "prompt_tokens": prompt.tokens,
        "length": len(prompt.tokens),
        "private": prompt.private,
        "cut": prompt.cut,
        "answers": list(prompt.answers),
    }


def _rollout_rows(result: QuestionResult, config: RunConfig) -> list[dict[str, Any]]:
    rows = [
        _sampled_row("base", config.student, rollout) | {"pieces": pieces}
        for rollout, pieces in zip(result.rollouts, result.pieces, strict=True)
    ]
    rows += [
        _sampled_row("demonstration", source or config.student, rollout)
        for source, pool in result.pools.items()
        for rollout in pool.rollouts
    ]
    rows += [_sampled_row("teacher", teacher, rollout) for teacher, taught in result.taught.items() for rollout in taught]
    rows += [_targeted_row(index, config.student, rollout) for index, rollout in enumerate(result.targeted)]
    return [{"question": result.question.id, **row} for row in rows]


def _sampled_row(purpose: str, source: str, rollout: Rollout) -> dict[str, Any]:
    row = {"purpose": purpose, "rollout": rollout.index, "source": source, "node": None, "token": None, "text": rollout.text}
    return row | _completion_cells(rollout.completion) | _grade_cells(rollout.grade)


def _targeted_row(index: int, source: str, rollout: TargetedRollout) -> dict[str, Any]:
    row = {"purpose": "targeted", "rollout": index, "source": source, "node": rollout.branch.node}
    row |= {"token": rollout.branch.path[-1], "text": None}
    return row | _completion_cells(rollout.completion) | _grade_cells(rollout.grade)


def _completion_cells(completion: Completion) -> dict[str, Any]:
    return {"tokens": completion.tokens, "logprobs": completion.logprobs, "stop": completion.stop}


def _grade_cells(grade: Grade) -> dict[str, Any]:
    return {"reward": grade.reward, "outcome": grade.outcome, "read_answer": grade.answer, "ungradable_reason": grade.reason}


def _node_rows(result: QuestionResult, scored: Scored) -> list[dict[str, Any]]:
    question = result.question
    tree, survey, evidence, full, visited = scored.tree, scored.survey, scored.evidence, scored.full, scored.visited
    place = {int(row): m for m, row in enumerate(evidence.rows)}
    visits, windows, priority = tree.visits(), depth_window(tree.depth), survey.priority_N
    wrong = tree.weighted_visits(np.array([1.0 - rollout.grade.reward for rollout in result.rollouts]))
    rows = []
    for n, node in enumerate(survey.nodes):
        rows.append({
            "question": question.id,
            "node": int(node),
            "parent": int(tree.parent[node]),
            "token": int(tree.token[node]),
            "depth": int(tree.depth[node]),
            "window": int(windows[node]),
            "visits": int(visits[node]),
            "visits_wrong": float(wrong[node]),
            "priority": priority[n],
            "inclusion": known(scored.plan.inclusion_N[n]),
            "scored": n in place,
            "student_entropy": survey.student_entropy_N[n],
        })  # fmt: skip
        m = place.get(n)
        if m is not None:
            rows[-1] |= {
                "weight": known(scored.weight_M[m]),
                "tried": int(evidence.tried_MK[m].sum()),
                "student_mass": float(survey.student_probs_NK[n][evidence.tried_MK[m]].sum()),
                "value": known(scored.totals.value_N[n]),
                "informative": bool(full.ideal.informative_N[m]),
                "g_norm2": known(full.ideal.corrected_norm2_N[m]),
                "g_norm2_raw": known(full.ideal.norm2_N[m]),
                "g_norm2_visited": known(visited.ideal.corrected_norm2_N[m]),
                "g_norm2_visited_raw": known(visited.ideal.norm2_N[m]),
            }
    return rows


def _branch_rows(question: Question, scored: Scored) -> list[dict[str, Any]]:
    survey, evidence, success = scored.survey, scored.evidence, scored.evidence.success
    rows = []
    for m, n in enumerate(evidence.rows):
        candidates = {*scored.plan.tokens_MK[m].tolist()}
        for k in np.flatnonzero(evidence.present_MK[m] & (success.n[m] > 0)):
            token = int(evidence.tokens_MK[m, k])
            rows.append({
                "question": question.id,
                "node": int(survey.nodes[n]),
                "token": token,
                "token_text": scored.token_texts[token],
                "student_prob": survey.student_probs_NK[n, k],
                "candidate": token in candidates,
                "in_support": bool(evidence.tried_MK[m, k]),
                "n": int(success.n[m, k]),
                "success": success.mean[m, k],
                "lower": success.lower[m, k],
                "upper": success.upper[m, k],
                "shrunken": known(evidence.shrunken_MK[m, k]),
                "exact": bool(success.exact[m, k]),
                "ideal": scored.full.ideal.g_NK[m, k] if evidence.tried_MK[m, k] else None,
            })  # fmt: skip
    return rows


def _direction_rows(result: QuestionResult, scored: Scored, config: RunConfig) -> list[dict[str, Any]]:
    """d and the teacher's probability at the tokens of the support, for every teacher and objective."""
    survey, evidence = scored.survey, scored.evidence
    places = [
        (m, n, k) for m, n in enumerate(evidence.rows) for k in np.flatnonzero(evidence.tried_MK[m] & evidence.present_MK[m])
    ]
    rows = []
    for c, o, teacher, objective in _pairs(result, config):
        outcome = parse_objective(objective).outcome
        estimated = outcome is not None and not outcome.sampled
        for m, n, k in places:
            rows.append({
                "question": result.question.id,
                "node": int(survey.nodes[n]),
                "token": int(evidence.tokens_MK[m, k]),
                "teacher": teacher,
                "objective": objective,
                "teacher_prob": None if teacher == REWARDS else float(np.exp(survey.teacher_logprobs_CNK[c, n, k])),
                "direction": None if estimated else float(survey.direction_CONK[c, o, n, k]),
            })  # fmt: skip
    return rows


def _teacher_rows(result: QuestionResult, scored: Scored) -> list[dict[str, Any]]:
    survey, evidence = scored.survey, scored.evidence
    place = {int(row): m for m, row in enumerate(evidence.rows)}
    rows = []
    for c, prompt in enumerate(result.prompts):
        tau = np.where(evidence.tried_MK, np.exp(survey.teacher_logprobs_CNK[c][evidence.rows]), 0.0)
        pi = np.where(evidence.tried_MK, survey.student_probs_NK[evidence.rows], 0.0)
        ahead = np.where(evidence.tried_MK, evidence.success.mean, 0.0) - scored.full.ideal.value_N[:, None]
        advantage = np.where(evidence.tried_MK, (tau - pi) * ahead, 0.0).sum(1)
        for n, node in enumerate(survey.nodes):
            row = {"question": result.question.id, "node": int(node), "teacher": prompt.teacher.name}
            row |= dict(zip(DIVERGENCES, survey.divergence_CND[c, n], strict=True)) | {"tail": known(survey.tail_CN[c, n])}
            m = place.get(n)
            if m is not None:
                row |= {"teacher_mass": tau[m].sum(), "advantage": known(advantage[m])}
            rows.append(row)
    return rows


def _alignment_rows(result: QuestionResult, scored: Scored, config: RunConfig) -> list[dict[str, Any]]:
    survey, evidence, full, visited = scored.survey, scored.evidence, scored.full, scored.visited
    rows = []
    for c, o, teacher, objective in _pairs(result, config):
        captured_M = np.where(evidence.tried_MK, survey.direction_CONK[c, o, evidence.rows], 0.0) ** 2
        known_norm2_M = survey.direction_norm2_CON[c, o, evidence.rows]
        for m, n in enumerate(evidence.rows):
            whole, part = full.alignment[c][o], visited.alignment[c][o]
            rows.append({
                "question": result.question.id,
                "node": int(survey.nodes[n]),
                "teacher": teacher,
                "objective": objective,
                "weight": known(scored.weight_M[m]),
                "alignment": known(part.cosine_N[m]),
                "alignment_full": known(whole.cosine_N[m]),
                "dot": known(whole.dot_N[m]),
                "dot_se": known(whole.dot_se_N[m]),
                "dot_visited": known(part.dot_N[m]),
                "dot_visited_se": known(part.dot_se_N[m]),
                "d_norm2": full.direction_norm2_COM[c, o, m],
                "d_norm2_visited": visited.direction_norm2_COM[c, o, m],
                "captured": captured_M[m].sum() / known_norm2_M[m] if known_norm2_M[m] > 0 else None,
            })  # fmt: skip
    return rows


def _pairs(result: QuestionResult, config: RunConfig) -> list[tuple[int, int, str, str]]:
    """Teachers and objectives with their places; an objective without a teacher stands once, for all."""
    alone = [parse_objective(spec).teacherless for spec in config.objectives]
    return [
        (c, o, REWARDS if alone[o] else prompt.teacher.name, objective)
        for c, prompt in enumerate(result.prompts)
        for o, objective in enumerate(config.objectives)
        if c == 0 or not alone[o]
    ]


def _score_rows(result: QuestionResult, scored: Scored, config: RunConfig) -> list[dict[str, Any]]:
    """Sums over all on-policy nodes; missing where nodes were taken outright."""
    totals, visits = scored.totals, scored.visits_N
    return [
        {
            "question": result.question.id,
            "teacher": teacher,
            "objective": objective,
            "length": float(visits.sum()),
            "dot": known(scored.dot_CO[c, o]),
            "dot_se": known(totals.dot_se_CO[c, o]) if parse_objective(objective).outcome is None else None,
            "d_norm2": known(scored.d_norm2_CO[c, o]),
            "advantage": known(totals.advantage_C[c]) if teacher != REWARDS else None,
            "advantage_se": known(totals.advantage_se_C[c]) if teacher != REWARDS else None,
            "effective_share": scored.pairs[c, o].effective if (c, o) in scored.pairs else None,
            "pair_information": scored.pairs[c, o].information if (c, o) in scored.pairs else None,
        }
        for c, o, teacher, objective in _pairs(result, config)
    ]


def _step_rows(result: QuestionResult, scored: Scored, config: RunConfig) -> list[dict[str, Any]]:
    """The ideal step of a question and those of its teachers and objectives; nothing where nodes were taken outright."""
    if scored.ideal is None:
        return []
    survey = scored.survey
    steps = [("all", None, None, scored.ideal)]
    steps += [
        (tokens, teacher, objective, scored.steps[w, c, o])
        for w, tokens in enumerate(("all", *config.tokens))
        for c, o, teacher, objective in _pairs(result, config)
        if (w, c, o) in scored.steps
    ]
    return [
        {
            "question": result.question.id,
            "teacher": teacher,
            "objective": objective,
            "tokens": tokens,
            "exact": survey.sketch.exact,
            "step": step.head_L,
            "exact_logits": survey.flat.exact,
            "step_logits": step.logits_F,
        }
        for tokens, teacher, objective, step in steps
    ]


def known(value: float) -> float | None:
    """A number, or None where it is missing."""
    return None if np.isnan(value) else float(value)
