"""Rows of the run folder for one question, in the terms of `store.TABLES`. Only arranges; computes nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gradalign.contexts import render_question
from gradalign.objectives import parse_objective
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.prompts import TeacherPrompt
from gradalign.pipeline.result import QuestionResult, Scored
from gradalign.pipeline.vocabulary import DIVERGENCES
from gradalign.schedule import depth_window
from gradalign.store import arrow_schema, arrow_table, ragged
from gradalign.types import REWARDS, Question

Rows = dict[str, pa.Table]
_OF_NODES = ("nodes", "branches", "directions", "teachers", "alignment", "steps")


def question_rows(result: QuestionResult, config: RunConfig) -> Rows:
    """All rows of one question, by table."""
    scored = result.scored
    few = {
        "questions": [_question_row(result)],
        "contexts": [_context_row(result.question, prompt) for prompt in result.prompts],
        "scores": [] if scored is None else _score_rows(result, scored, config),
        "skipped": [vars(skip) for skip in result.skips],
    }
    rows = {table: pa.Table.from_pylist(of_table, schema=arrow_schema(table)) for table, of_table in few.items()}
    rows["rollouts"] = _rollouts(result, config)
    if scored is None:
        return rows | {table: arrow_schema(table).empty_table() for table in _OF_NODES}
    return rows | {
        "nodes": _nodes(result, scored),
        "branches": _branches(result.question, scored),
        "directions": _directions(result, scored, config),
        "teachers": _teachers(result, scored),
        "alignment": _alignment(result, scored, config),
        "steps": _steps(result, scored, config),
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


def _rollouts(result: QuestionResult, config: RunConfig) -> pa.Table:
    base, targeted = result.rollouts, result.targeted
    shown = [(source or config.student, rollout) for source, pool in result.pools.items() for rollout in pool.rollouts]
    taught = [(teacher, rollout) for teacher, rollouts in result.taught.items() for rollout in rollouts]
    read = [*base, *(rollout for _, rollout in (*shown, *taught))]
    completions = [rollout.completion for rollout in (*read, *targeted)]
    grades = [rollout.grade for rollout in (*read, *targeted)]
    untold = [None] * (len(shown) + len(taught))
    columns = {
        "question": result.question.id,
        "purpose": _repeated(
            ("base", base), ("demonstration", shown), ("teacher", taught), ("targeted", targeted)
        ),
        "rollout": [*(rollout.index for rollout in read), *range(len(targeted))],
        "source": [
            *_repeated((config.student, base)), *(source for source, _ in (*shown, *taught)), *_repeated((config.student, targeted))
        ],
        "node": [*[None] * len(read), *(rollout.branch.node for rollout in targeted)],
        "token": [*[None] * len(read), *(rollout.branch.path[-1] for rollout in targeted)],
        "text": [*(rollout.text for rollout in read), *[None] * len(targeted)],
        "pieces": [*result.pieces, *untold, *[None] * len(targeted)],
        "tokens": ragged([completion.tokens for completion in completions], pa.int32()),
        "logprobs": ragged([completion.logprobs for completion in completions], pa.float32()),
        "stop": [completion.stop for completion in completions],
        "reward": [grade.reward for grade in grades],
        "outcome": [grade.outcome for grade in grades],
        "read_answer": [grade.answer for grade in grades],
        "ungradable_reason": [grade.reason for grade in grades],
    }  # fmt: skip
    return arrow_table("rollouts", len(completions), columns)


def _repeated(*counted: tuple[str, Sequence[Any]]) -> list[str]:
    """Each name as often as there are things of it."""
    return [name for name, things in counted for _ in things]


def _nodes(result: QuestionResult, scored: Scored) -> pa.Table:
    tree, survey, evidence = scored.tree, scored.survey, scored.evidence
    nodes, full, visited = survey.nodes, scored.full.ideal, scored.visited.ideal
    wrong = tree.weighted_visits(np.array([1.0 - rollout.grade.reward for rollout in result.rollouts]))
    there = np.zeros(len(nodes), dtype=bool)
    there[evidence.rows] = True

    def at_scored(values_M: np.ndarray) -> pa.Array:
        return _known(_spread(values_M, evidence.rows, len(nodes)), ~there)

    mass_M = np.where(evidence.tried_MK, survey.student_probs_NK[evidence.rows], 0.0).sum(1)
    columns = {
        "question": result.question.id,
        "node": nodes,
        "parent": tree.parent[nodes],
        "token": tree.token[nodes],
        "depth": tree.depth[nodes],
        "window": depth_window(tree.depth)[nodes],
        "visits": tree.visits()[nodes],
        "visits_wrong": wrong[nodes],
        "priority": survey.priority_N,
        "inclusion": _known(scored.plan.inclusion_N),
        "scored": there,
        "student_entropy": survey.student_entropy_N,
        "weight": at_scored(scored.weight_M),
        "tried": at_scored(evidence.tried_MK.sum(1)),
        "student_mass": at_scored(mass_M),
        "value": at_scored(scored.totals.value_N[evidence.rows]),
        "informative": at_scored(full.informative_N),
        "g_norm2": at_scored(full.corrected_norm2_N),
        "g_norm2_raw": at_scored(full.norm2_N),
        "g_norm2_visited": at_scored(visited.corrected_norm2_N),
        "g_norm2_visited_raw": at_scored(visited.norm2_N),
    }
    return arrow_table("nodes", len(nodes), columns)


def _spread(values_M: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Values at some rows of so many."""
    spread = np.zeros(count, dtype=values_M.dtype)
    spread[rows] = values_M
    return spread


def _branches(question: Question, scored: Scored) -> pa.Table:
    survey, evidence, success = scored.survey, scored.evidence, scored.evidence.success
    m, k = np.nonzero(evidence.present_MK & (success.n > 0))
    n, token = evidence.rows[m], evidence.tokens_MK[m, k]
    tried = evidence.tried_MK[m, k]
    columns = {
        "question": question.id,
        "node": survey.nodes[n],
        "token": token,
        "token_text": [scored.token_texts[int(t)] for t in token],
        "student_prob": survey.student_probs_NK[n, k],
        "candidate": (scored.plan.tokens_MK[m] == token[:, None]).any(1),
        "in_support": tried,
        "n": success.n[m, k].astype(np.int64),
        "success": success.mean[m, k],
        "lower": success.lower[m, k],
        "upper": success.upper[m, k],
        "shrunken": _known(evidence.shrunken_MK[m, k]),
        "exact": success.exact[m, k],
        "ideal": pa.array(scored.full.ideal.g_NK[m, k], mask=~tried),
    }
    return arrow_table("branches", len(m), columns)


def _directions(result: QuestionResult, scored: Scored, config: RunConfig) -> pa.Table:
    """d and the teacher's probability at the tokens of the support, for every teacher and objective."""
    survey, evidence = scored.survey, scored.evidence
    m, k = np.nonzero(evidence.tried_MK & evidence.present_MK)
    n = evidence.rows[m]
    tables = []
    for c, o, teacher, objective in _pairs(result, config):
        outcome = parse_objective(objective).outcome
        estimated = outcome is not None and not outcome.sampled
        columns = {
            "question": result.question.id,
            "node": survey.nodes[n],
            "token": evidence.tokens_MK[m, k],
            "teacher": teacher,
            "objective": objective,
            "teacher_prob": None if teacher == REWARDS else np.exp(survey.teacher_logprobs_CNK[c, n, k]),
            "direction": None if estimated else survey.direction_CONK[c, o, n, k],
        }
        tables.append(arrow_table("directions", len(m), columns))
    return pa.concat_tables(tables)


def _teachers(result: QuestionResult, scored: Scored) -> pa.Table:
    survey, evidence = scored.survey, scored.evidence
    nodes = survey.nodes
    away = np.ones(len(nodes), dtype=bool)
    away[evidence.rows] = False
    pi = np.where(evidence.tried_MK, survey.student_probs_NK[evidence.rows], 0.0)
    ahead = np.where(evidence.tried_MK, evidence.success.mean, 0.0) - scored.full.ideal.value_N[:, None]
    tables = []
    for c, prompt in enumerate(result.prompts):
        tau = np.where(evidence.tried_MK, np.exp(survey.teacher_logprobs_CNK[c][evidence.rows]), 0.0)
        advantage = np.where(evidence.tried_MK, (tau - pi) * ahead, 0.0).sum(1)
        columns = {
            "question": result.question.id,
            "node": nodes,
            "teacher": prompt.teacher.name,
            **dict(zip(DIVERGENCES, survey.divergence_CND[c].T, strict=True)),
            "tail": _known(survey.tail_CN[c]),
            "teacher_mass": _known(_spread(tau.sum(1), evidence.rows, len(nodes)), away),
            "advantage": _known(_spread(advantage, evidence.rows, len(nodes)), away),
        }
        tables.append(arrow_table("teachers", len(nodes), columns))
    return pa.concat_tables(tables)


def _alignment(result: QuestionResult, scored: Scored, config: RunConfig) -> pa.Table:
    survey, evidence, full, visited = scored.survey, scored.evidence, scored.full, scored.visited
    tables = []
    for c, o, teacher, objective in _pairs(result, config):
        whole, part = full.alignment[c][o], visited.alignment[c][o]
        captured_M = (np.where(evidence.tried_MK, survey.direction_CONK[c, o, evidence.rows], 0.0) ** 2).sum(1)
        known_norm2_M = survey.direction_norm2_CON[c, o, evidence.rows]
        unmoved = ~(known_norm2_M > 0)
        columns = {
            "question": result.question.id,
            "node": survey.nodes[evidence.rows],
            "teacher": teacher,
            "objective": objective,
            "weight": _known(scored.weight_M),
            "alignment": _known(part.cosine_N),
            "alignment_full": _known(whole.cosine_N),
            "dot": _known(whole.dot_N),
            "dot_se": _known(whole.dot_se_N),
            "dot_visited": _known(part.dot_N),
            "dot_visited_se": _known(part.dot_se_N),
            "d_norm2": full.direction_norm2_COM[c, o],
            "d_norm2_visited": visited.direction_norm2_COM[c, o],
            "captured": pa.array(captured_M / np.where(unmoved, 1.0, known_norm2_M), mask=unmoved),
        }
        tables.append(arrow_table("alignment", len(evidence.rows), columns))
    return pa.concat_tables(tables)


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


def _steps(result: QuestionResult, scored: Scored, config: RunConfig) -> pa.Table:
    """The ideal step of a question and those of its teachers and objectives; nothing where nodes were taken outright."""
    if scored.ideal is None:
        return arrow_schema("steps").empty_table()
    steps = [("all", None, None, scored.ideal)]
    steps += [
        (tokens, teacher, objective, scored.steps[w, c, o])
        for w, tokens in enumerate(("all", *config.tokens))
        for c, o, teacher, objective in _pairs(result, config)
        if (w, c, o) in scored.steps
    ]
    columns = {
        "question": result.question.id,
        "teacher": [teacher for _, teacher, _, _ in steps],
        "objective": [objective for _, _, objective, _ in steps],
        "tokens": [tokens for tokens, _, _, _ in steps],
        "exact": scored.survey.sketch.exact,
        "step": ragged([step.head_L for _, _, _, step in steps], pa.float32()),
        "exact_logits": scored.survey.flat.exact,
        "step_logits": ragged([step.logits_F for _, _, _, step in steps], pa.float32()),
    }
    return arrow_table("steps", len(steps), columns)


def _known(values: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """Numbers, missing where they are NaN or said to be missing."""
    unknown = np.isnan(values)
    return pa.array(values, mask=unknown if missing is None else unknown | missing)


def known(value: float) -> float | None:
    """A number, or None where it is missing."""
    return None if np.isnan(value) else float(value)
