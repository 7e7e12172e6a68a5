"""A question's rollouts token by token, with all that is known at each of them: what the report's explorer and `show` draw from."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportReturnType=false

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from gradalign.sheets import Head, Remark, Sheet, interval, number
from gradalign.store import Run
from gradalign.tree import build_tree
from gradalign.types import REWARDS, GradalignError

_NUMBERS = {"token": "int64", "teacher_prob": "float64", "direction": "float64"}
Of = Literal["pair", "teacher", "student"]


@dataclass(frozen=True)
class Quantity:
    """A number that tokens are coloured by: its name, what it is, whom it depends on, and whether it has two sides about 0."""

    name: str
    label: str
    meaning: str
    of: Of
    signed: bool


QUANTITIES = (
    Quantity("dot", "⟨g, d⟩", "how much a step toward the teacher raises success here", "pair", True),
    Quantity("alignment", "alignment", "cosine of ideal and distillation direction on the tried tokens", "pair", True),
    Quantity("success", "success", "estimated success once this token is chosen", "student", False),
    Quantity("advantage", "teacher advantage", "what would be gained here if the student became the teacher", "teacher", True),
    Quantity("reverse_kl", "KL(student || teacher)", "in nats", "teacher", False),
    Quantity("forward_kl", "KL(teacher || student)", "in nats", "teacher", False),
    Quantity("student_entropy", "student's entropy", "in nats", "student", False),
)


@dataclass(frozen=True, eq=False)
class TokenRollout:
    """A base rollout: what the grader said, the text that each of T tokens adds, their ids, and the nodes at which they were chosen."""

    number: int
    reward: float
    outcome: str
    stop: str
    read_answer: str | None
    pieces: Sequence[str]
    tokens: np.ndarray
    nodes: np.ndarray


@dataclass(frozen=True, eq=False)
class QuestionTokens:
    """Everything at the nodes of one question.

    `question` is its row of the run; `messages` what each teacher saw. Frames: `nodes` by node; `teachers` by (node, teacher); `pairs`
    (alignment) by (node, teacher, objective); `branches` by (node, token); `directions` by (node, teacher, objective), one row a token.
    """

    question: dict[str, Any]
    messages: dict[str, str]
    rollouts: list[TokenRollout]
    nodes: pd.DataFrame
    teachers: pd.DataFrame
    pairs: pd.DataFrame
    branches: pd.DataFrame
    directions: pd.DataFrame

    def values(self, rollout: TokenRollout, quantity: str, teacher: str, objective: str) -> np.ndarray:
        """A quantity at each token of a rollout; NaN where it is not known."""
        if quantity == "success":
            keys = pd.MultiIndex.from_arrays([rollout.nodes, rollout.tokens])
            return self.branches["success"].reindex(keys).to_numpy(dtype=np.float64)
        if quantity == "student_entropy":
            return self.nodes[quantity].reindex(rollout.nodes).to_numpy(dtype=np.float64)
        kind = next(q.of for q in QUANTITIES if q.name == quantity)
        who = (teacher,) if kind == "teacher" else (teacher, objective)
        frame = self.teachers if kind == "teacher" else self.pairs
        keys = pd.MultiIndex.from_tuples([(node, *who) for node in rollout.nodes], names=frame.index.names)
        return frame[quantity].reindex(keys).to_numpy(dtype=np.float64)

    def worst(self, rollout: TokenRollout, teacher: str, objective: str) -> np.ndarray:
        """Positions where a step toward the teacher lowers success, worst first."""
        dot = self.values(rollout, "dot", teacher, objective)
        return np.array([i for i in np.argsort(dot, kind="stable") if dot[i] < 0], dtype=np.int64)

    def decisive(self, rollout: TokenRollout) -> np.ndarray:
        """Positions where success differs between tokens beyond noise, the longest ideal direction first."""
        nodes = self.nodes.reindex(rollout.nodes)
        told = (nodes["informative"].fillna(False).astype(bool) & (nodes["g_norm2"] > 0)).to_numpy()
        size = np.where(told, nodes["g_norm2"].to_numpy(dtype=np.float64), -np.inf)
        return np.array([i for i in np.argsort(-size, kind="stable") if told[i]], dtype=np.int64)

    def candidates(self, node: int, teacher: str, objective: str) -> pd.DataFrame:
        """Tokens that were tried at a node, likeliest first: text, student_prob, teacher_prob, success with its interval, n, ideal,
        direction."""
        if node not in self.branches.index.get_level_values(0):
            return pd.DataFrame()
        branches = self.branches.loc[[node]].reset_index()
        key = (node, teacher, objective)
        own = self.directions.loc[[key]] if key in self.directions.index else self.directions.iloc[:0]
        found = branches.merge(own[["token", "teacher_prob", "direction"]].astype(_NUMBERS), on="token", how="left")
        return found.sort_values("student_prob", ascending=False, ignore_index=True)


def question_tokens(run: Run, questions: Collection[str]) -> Iterator[QuestionTokens]:
    """The questions given, each with everything at its nodes, in their order."""
    held = run.holding(questions)
    mine = pc.field("question").isin(list(questions))

    def by_question(table: str, columns: list[str], index: list[str], where: pc.Expression = mine) -> dict[str, pd.DataFrame]:
        frame = held.frame(table, ["question", *columns], where).set_index(["question", *index]).sort_index()
        return {str(q): rows.droplevel("question") for q, rows in frame.groupby(level="question")}

    known = held.frame("questions", None, mine).set_index("question", drop=False)
    missing = [question for question in questions if question not in known.index]
    if missing:
        raise GradalignError(f"the run has no question {missing[0]!r}; {_some(run)}")
    contexts = dict(iter(held.frame("contexts", ["question", "teacher", "message", "system"], mine).groupby("question")))
    columns = ["question", "purpose", "rollout", "reward", "outcome", "stop", "read_answer", "pieces", "tokens"]
    rollouts = held.frame("rollouts", columns, mine & (pc.field("purpose") == "base"))
    rolled = {q: rows.sort_values("rollout") for q, rows in rollouts.groupby("question")}
    nodes = by_question(
        "nodes",
        ["node", "depth", "visits", "inclusion", "scored", "student_entropy", "value", "informative", "g_norm2"],
        ["node"],
    )
    teachers = by_question(
        "teachers", ["node", "teacher", "reverse_kl", "forward_kl", "jsd", "teacher_entropy", "advantage"], ["node", "teacher"]
    )
    pairs = by_question(
        "alignment",
        ["node", "teacher", "objective", "alignment", "alignment_full", "dot", "dot_se"],
        ["node", "teacher", "objective"],
    )
    branches = by_question(
        "branches", ["node", "token", "token_text", "student_prob", "in_support", "n", "success", "lower", "upper", "ideal"],
        ["node", "token"],
    )  # fmt: skip
    directions = by_question(
        "directions", ["node", "teacher", "objective", "token", "teacher_prob", "direction"], ["node", "teacher", "objective"]
    )
    no_pairs = _none(["alignment", "alignment_full", "dot", "dot_se"], ["node", "teacher", "objective"])
    untried = ["token_text", "student_prob", "in_support", "n", "success", "lower", "upper", "ideal"]
    no_branches = _none(untried, ["node", "token"])
    no_directions = _none(["token", "teacher_prob", "direction"], ["node", "teacher", "objective"])
    for question in questions:
        if question not in nodes:
            continue  # nothing was scored of it
        shown = contexts[question]
        yield QuestionTokens(
            known.loc[question].to_dict(),
            dict(zip(shown["teacher"], map(_asked, shown["message"], shown["system"]), strict=True)),
            _rollouts(rolled[question]),
            nodes[question],
            teachers[question],
            pairs.get(question, no_pairs),
            branches.get(question, no_branches),
            directions.get(question, no_directions),
        )


def _asked(message: str, system: object) -> str:
    """What a teacher is asked, as one text; `system` is missing where there is no system message."""
    return message if pd.isna(system) else f"System message:\n{system}\n\nUser message:\n{message}"


def candidate_sheet(view: QuestionTokens, rollout: TokenRollout, place: int, teacher: str, objective: str) -> Sheet:
    """The tokens that were tried at a position of a rollout, as a table; the one that the rollout took is marked."""
    title = f"rollout {rollout.number}, position {place}, node {int(rollout.nodes[place])}: tokens that were tried"
    heads = (Head("", number=False), Head("token", number=False), Head("π"), Head("τ"), Head("success [95%]", strong=True), Head("n"),
             Head("g ·10³"), Head("d ·10³"))  # fmt: skip
    frame = view.candidates(int(rollout.nodes[place]), teacher, objective)
    if frame.empty:
        return Sheet(title, remarks=(Remark("No rollouts were forced here: the node was not chosen.", "note"),))
    rows = [
        ("→" if row["token"] == rollout.tokens[place] else "", repr(row["token_text"]), number(row["student_prob"], ".3f"),
         number(row["teacher_prob"], ".3f"),
         f"{row['success']:.2f} {interval(row['lower'], row['upper'], lambda value: number(value, '.2f'))}", f"{row['n']}",
         number(row["ideal"] * 1e3, "+.1f"), number(row["direction"] * 1e3, "+.1f"))
        for row in frame.to_dict("records")
    ]  # fmt: skip
    return Sheet(title, heads, tuple(rows))


def pairs_of(run: Run) -> list[tuple[str, str]]:
    """Every teacher and objective of a run, in the order in which they were asked for."""
    scores = run.frame("scores", ["teacher", "objective"]).drop_duplicates()
    found = {*zip(scores["teacher"], scores["objective"], strict=True)}
    named = [(t, o) for t in (*run.identity["teachers"], REWARDS) for o in run.identity["objectives"]]
    return [pair for pair in named if pair in found]


def _rollouts(rows: pd.DataFrame) -> list[TokenRollout]:
    tokens = [np.asarray(row, dtype=np.int64) for row in rows["tokens"]]
    origin_RT = build_tree(tokens).origin_RT()
    return [
        TokenRollout(
            int(row["rollout"]), float(row["reward"]), row["outcome"], row["stop"],
            None if pd.isna(row["read_answer"]) else row["read_answer"],
            list(row["pieces"]), tokens[i], origin_RT[i, : len(tokens[i])],
        )
        for i, row in enumerate(rows.to_dict("records"))
    ]  # fmt: skip


def _none(columns: list[str], index: list[str]) -> pd.DataFrame:
    """A frame without rows."""
    return pd.DataFrame(columns=[*index, *columns]).set_index(index)


def _some(run: Run) -> str:
    """A few questions that the run has."""
    names = sorted(run.frame("questions", ["question"])["question"])
    return f"it has {', '.join(names[:5])}{f' and {len(names) - 5:,} more' if len(names) > 5 else ''}"
