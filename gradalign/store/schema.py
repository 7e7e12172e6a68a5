"""The tables of a run as data: column, type, unit, meaning. Writer, reader, report and docs all use this table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """One column. `unit` is empty for names, flags and ratios without one."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str


_TEXT, _INT, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_IDS, _REALS = pa.list_(pa.int32()), pa.list_(pa.float32())

_QUESTION = Column("question", _TEXT, "", "id of the question")
_NODE = Column("node", _INT, "", "number of the node in its question's tree; 0 is the prompt alone")
_TEACHER = Column("teacher", _TEXT, "", "teacher as the user wrote it")
_WEIGHT = Column(
    "weight", _REAL, "visits per rollout", "visitation over inclusion probability; missing where nodes were taken outright"
)

TABLES: dict[str, tuple[Column, ...]] = {
    "questions": (
        _QUESTION,
        Column("order", _INT, "", "place of the question in its set"),
        Column("text", _TEXT, "", "the question"),
        Column("choices", pa.list_(_TEXT), "", "its options, where it has any"),
        Column("prompt", _TEXT, "", "the user message that the student sees"),
        Column("answer", _TEXT, "", "its answer"),
        Column("kind", _TEXT, "", "which grader reads the answer"),
        Column("difficulty", _TEXT, "", "difficulty as its set states it"),
        Column("rollouts", _INT, "rollouts", "base rollouts"),
        Column("pass_rate", _REAL, "", "mean reward of the base rollouts"),
        Column("right", _INT, "rollouts", "base rollouts with reward 1"),
        Column("ungradable", _INT, "rollouts", "base rollouts in which no answer could be read (reward 0)"),
        Column("truncated", _INT, "rollouts", "base rollouts cut at the length limit"),
        Column("nodes", _INT, "nodes", "prefixes at which base rollouts chose a token"),
        Column("scored_nodes", _INT, "nodes", "nodes chosen for targeted rollouts"),
        Column("targeted_rollouts", _INT, "rollouts", "targeted rollouts; one whose forced token ends it needs no sampling"),
        Column(
            "sampled_tokens",
            _INT,
            "tokens",
            "tokens sampled from any model: base, demonstrations, summaries, teachers' rollouts, targeted",
        ),
    ),
    "contexts": (
        _QUESTION,
        _TEACHER,
        Column("message", _TEXT, "", "the user message that the teacher sees"),
        Column("system", _TEXT, "", "the system message that it sees before it; missing where the context makes none"),
        Column("prompt_tokens", _IDS, "", "the teacher's whole prompt as token ids"),
        Column("length", _INT, "tokens", "length of the teacher's prompt"),
        Column(
            "private",
            _INT,
            "tokens",
            "length of the text that only the teacher sees; missing where a template of one's own is the whole message",
        ),
        Column("cut", _INT, "tokens", "what the length budget took out of the middle of privileged material"),
        Column("answers", pa.list_(_TEXT), "", "answers that stand in what only the teacher sees, as the grader reads them"),
    ),
    "rollouts": (
        _QUESTION,
        Column("purpose", _TEXT, "", "base, demonstration, teacher (sampled by a teacher under its own prompt), or targeted"),
        Column("rollout", _INT, "", "number of the rollout among those of its purpose"),
        Column("source", _TEXT, "", "the model it was sampled from; of a teacher's rollout the teacher"),
        Column("node", _INT, "", "targeted: the node at which a token was forced"),
        Column("token", _INT, "", "targeted: the token that was forced"),
        Column("text", _TEXT, "", "text of base rollouts, demonstrations and teachers' rollouts"),
        Column("pieces", pa.list_(_TEXT), "", "base: the text that each token adds, empty where it adds none"),
        Column("tokens", _IDS, "", "sampled tokens; of a targeted rollout those after the forced one"),
        Column("logprobs", _REALS, "nats", "log-probability of each sampled token under what it was sampled from"),
        Column("stop", _TEXT, "", "why it ended: stop token or length"),
        Column("reward", _REAL, "", "reward of the whole rollout"),
        Column("outcome", _TEXT, "", "right, wrong or ungradable"),
        Column("read_answer", _TEXT, "", "the answer that the grader read"),
        Column("ungradable_reason", _TEXT, "", "why the text is ungradable; missing where it is graded"),
    ),
    "nodes": (
        _QUESTION,
        _NODE,
        Column("parent", _INT, "", "the node before its last token; -1 at the root"),
        Column("token", _INT, "", "its last token; -1 at the root"),
        Column("depth", _INT, "tokens", "number of generated tokens in the prefix"),
        Column("window", _INT, "", "depth window: 0 is [0,1), 1 is [1,2), 2 is [2,4), ..."),
        Column("visits", _INT, "rollouts", "base rollouts that chose a token here"),
        Column("visits_wrong", _REAL, "rollouts", "of these, what went unrewarded: the sum of 1 - reward"),
        Column("priority", _REAL, "", "largest expected |d| over the teachers and objectives compared"),
        Column("inclusion", _REAL, "", "probability with which the node was chosen; missing where nodes were taken outright"),
        Column("scored", _FLAG, "", "chosen for targeted rollouts"),
        _WEIGHT,
        Column("student_entropy", _REAL, "nats", "entropy of the student's next token"),
        Column("tried", _INT, "tokens", "tokens with enough rollouts: the support"),
        Column("student_mass", _REAL, "", "mass of the student's distribution on the support"),
        Column(
            "value",
            _REAL,
            "",
            "estimated success at the node, carried up the tree (forced tokens by the student's probabilities, the others as sampled)",
        ),
        Column("informative", _FLAG, "", "success differs between tokens beyond noise (level 0.05)"),
        Column(
            "g_norm2", _REAL, "", "squared length of the ideal direction, support full, corrected for noise (may be negative)"
        ),
        Column("g_norm2_raw", _REAL, "", "the same as estimated, too large by noise"),
        Column("g_norm2_visited", _REAL, "", "corrected squared length on the renormalised support"),
        Column("g_norm2_visited_raw", _REAL, "", "the same as estimated, too large by noise"),
    ),
    "branches": (
        _QUESTION,
        _NODE,
        Column("token", _INT, "", "the token chosen at the node"),
        Column("token_text", _TEXT, "", "its text"),
        Column("student_prob", _REAL, "", "the student's probability of it"),
        Column("candidate", _FLAG, "", "targeted rollouts were forced through it"),
        Column("in_support", _FLAG, "", "it had enough rollouts to count"),
        Column("n", _INT, "rollouts", "rollouts that are valid for it"),
        Column("success", _REAL, "", "their mean reward"),
        Column("lower", _REAL, "", "lower end of the 95% interval of success (Jeffreys)"),
        Column("upper", _REAL, "", "upper end"),
        Column(
            "shrunken",
            _REAL,
            "",
            "success drawn to the node's mean, as strongly as the question's branches are alike (empirical Bayes)",
        ),
        Column("exact", _FLAG, "", "it ends the rollout, so its success is known"),
        Column("ideal", _REAL, "", "ideal direction g at it, support full"),
    ),
    "directions": (
        _QUESTION,
        _NODE,
        Column("token", _INT, "", "a token of the support"),
        _TEACHER,
        Column("objective", _TEXT, "", "objective as the user wrote it"),
        Column("teacher_prob", _REAL, "", "the teacher's probability of it; missing for objectives without a teacher"),
        Column(
            "direction",
            _REAL,
            "",
            "distillation direction d at it, over the whole vocabulary; missing where it is estimated from rollouts",
        ),
    ),
    "teachers": (
        _QUESTION,
        _NODE,
        _TEACHER,
        Column("reverse_kl", _REAL, "nats", "KL(student || teacher)"),
        Column("forward_kl", _REAL, "nats", "KL(teacher || student)"),
        Column("jsd", _REAL, "nats", "Jensen-Shannon divergence"),
        Column("l2", _REAL, "", "Euclidean distance of the two distributions"),
        Column("similarity", _REAL, "", "cosine similarity of the two distributions"),
        Column("teacher_entropy", _REAL, "nats", "entropy of the teacher's next token"),
        Column("top_overlap", _REAL, "", "share of the 10 most likely tokens that both have"),
        Column("student_mass_on_teacher_top", _REAL, "", "student's mass on the teacher's 10 most likely tokens"),
        Column("teacher_mass_on_student_top", _REAL, "", "teacher's mass on the student's 10 most likely tokens"),
        Column(
            "tail",
            _REAL,
            "",
            "teacher's probability outside the tokens its server told; missing where the whole vocabulary is known",
        ),
        Column("teacher_mass", _REAL, "", "scored nodes: mass of the teacher's distribution on the support"),
        Column("advantage", _REAL, "", "scored nodes: teacher advantage, sum of (tau - pi) S, untried tokens at the mean"),
    ),
    "alignment": (
        _QUESTION,
        _NODE,
        _TEACHER,
        Column("objective", _TEXT, "", "objective as the user wrote it"),
        _WEIGHT,
        Column("alignment", _REAL, "", "cosine of ideal and distillation direction on the renormalised support"),
        Column("alignment_full", _REAL, "", "the same over the whole vocabulary, untried tokens at the mean success"),
        Column("dot", _REAL, "success per unit step", "<g, d> over the whole vocabulary"),
        Column("dot_se", _REAL, "success per unit step", "its standard error from the success estimates"),
        Column("dot_visited", _REAL, "success per unit step", "<g, d> on the renormalised support"),
        Column("dot_visited_se", _REAL, "success per unit step", "its standard error"),
        Column("d_norm2", _REAL, "", "squared length of the distillation direction over the whole vocabulary"),
        Column("d_norm2_visited", _REAL, "", "the same on the renormalised support"),
        Column("captured", _REAL, "", "share of |d|^2 on the support"),
    ),
    "scores": (
        _QUESTION,
        _TEACHER,
        Column("objective", _TEXT, "", "objective as the user wrote it"),
        Column("length", _REAL, "tokens", "mean length of a base rollout: the sum of all visits per rollout"),
        Column(
            "dot",
            _REAL,
            "success per unit step",
            "<g, d> over the whole vocabulary, summed over on-policy nodes; missing where nodes were taken outright",
        ),
        Column(
            "dot_se",
            _REAL,
            "success per unit step",
            "its standard error for this question: base rollouts, choice of nodes, Bernoulli noise",
        ),
        Column("d_norm2", _REAL, "", "|d|^2 summed over on-policy nodes"),
        Column(
            "advantage",
            _REAL,
            "success",
            "teacher advantage, sum of (tau - pi) S over the whole vocabulary, summed over on-policy nodes",
        ),
        Column("advantage_se", _REAL, "success", "its standard error for this question"),
        Column(
            "effective_share",
            _REAL,
            "",
            "objectives over pairs: effective share of the base rollouts' tokens under the ratio of the prefix's two probabilities",
        ),
        Column(
            "pair_information",
            _REAL,
            "",
            "objectives over pairs: mean of 4 w (1 - w), near 0 where the loss already tells all pairs apart",
        ),
    ),
    "steps": (
        _QUESTION,
        Column("teacher", _TEXT, "", "teacher as the user wrote it; missing for the ideal step"),
        Column("objective", _TEXT, "", "objective as the user wrote it; missing for the ideal step"),
        Column("tokens", _TEXT, "", "how tokens are weighted: all alike, or as a configuration wrote it"),
        Column("exact", _FLAG, "", "`step` is the (vocabulary, width) matrix itself, not a sketch of it"),
        Column(
            "step",
            _REALS,
            "",
            "sum over on-policy nodes of d h^T in the output layer, sketched: inner products of steps are those of the matrices",
        ),
        Column("exact_logits", _FLAG, "", "`step_logits` is the vector over the vocabulary itself, not a sketch of it"),
        Column("step_logits", _REALS, "", "sum over on-policy nodes of d, sketched"),
    ),
    "skipped": (
        _QUESTION,
        Column("teacher", _TEXT, "", "the teacher left out for this question; missing where the question was left out whole"),
        Column("reason", _TEXT, "", "why"),
        Column("detail", _TEXT, "", "more about it"),
    ),
}


@cache
def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table, each field carrying its unit and meaning as metadata."""
    return pa.schema(
        [
            pa.field(column.name, column.type, metadata={"unit": column.unit, "meaning": column.meaning})
            for column in TABLES[table]
        ]
    )


def arrow_table(table: str, rows: int, columns: Mapping[str, Any]) -> pa.Table:
    """A table from its columns, each an array or a list, or one value for all rows; a column that is not given is missing throughout.

    Numbers stay arrays from end to end: a row is no object of its own.
    """
    schema = arrow_schema(table)
    return pa.Table.from_arrays([_column(columns.get(field.name), field.type, rows) for field in schema], schema=schema)


def ragged(arrays: Sequence[np.ndarray], values: pa.DataType) -> pa.Array:
    """Arrays of any lengths as one column of lists of such values."""
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
    flat = np.concatenate(arrays) if len(arrays) else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat, values))


def _column(values: Any, kind: pa.DataType, rows: int) -> pa.Array:
    if isinstance(values, np.ndarray | list):
        return pa.array(values, kind)
    return values.cast(kind) if isinstance(values, pa.Array) else pa.repeat(pa.scalar(values, kind), rows)
