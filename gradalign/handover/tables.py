"""Questions and tokens of a run with the weights that a configuration gives them."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gradalign.configurations import Configuration
from gradalign.findings.ground import node_factors
from gradalign.store import Run
from gradalign.tree import build_tree
from gradalign.types import GradalignError

QUESTIONS = pa.schema([
    pa.field("question", pa.string(), metadata={"meaning": "id of the question"}),
    pa.field("prompt", pa.string(), metadata={"meaning": "the user message that the student sees"}),
    pa.field("answer", pa.string(), metadata={"meaning": "its answer"}),
    pa.field("kind", pa.string(), metadata={"meaning": "which grader reads the answer"}),
    pa.field("choices", pa.list_(pa.string()), metadata={"meaning": "its options, if it has any"}),
    pa.field("pass_rate", pa.float64(), metadata={"meaning": "mean reward of the base rollouts"}),
    pa.field("weight", pa.float64(), metadata={"meaning": "how much the question counts in training; mean 1"}),
    pa.field("teacher_message", pa.string(), metadata={"meaning": "the user message that the teacher sees"}),
    pa.field("teacher_system", pa.string(), metadata={"meaning": "the system message that it sees before it; missing where there is none"}),
    pa.field("teacher_prompt_tokens", pa.list_(pa.int32()), metadata={"meaning": "the teacher's whole prompt as token ids"}),
])  # fmt: skip
TOKENS = pa.schema([
    pa.field("question", pa.string(), metadata={"meaning": "id of the question"}),
    pa.field("rollout", pa.int64(), metadata={"meaning": "number of the base rollout"}),
    pa.field("position", pa.int64(), metadata={"meaning": "place of the token among the generated ones, from 0"}),
    pa.field("token", pa.int64(), metadata={"meaning": "its id"}),
    pa.field("node", pa.int64(), metadata={"meaning": "number of the prefix at which it was chosen, as in the run's tables"}),
    pa.field("weight", pa.float64(), metadata={"meaning": "how much the token counts in training; missing where unknown"}),
])  # fmt: skip


def question_table(run: Run, configuration: Configuration) -> tuple[pa.Table, dict[str, int]]:
    """The questions that a configuration trains on, in the order of their set (`QUESTIONS`), and how many were left out, by reason."""
    frame = run.frame("questions", ["question", "order", "prompt", "answer", "kind", "choices", "pass_rate"]).sort_values(
        "order"
    )
    skipped = run.frame("skipped", ["question", "teacher", "reason"])
    skipped = skipped[skipped["teacher"].isna() | (skipped["teacher"] == configuration.teacher)]
    reasons = skipped.drop_duplicates("question").set_index("question")["reason"]
    contexts = run.frame("contexts", ["question", "teacher", "message", "system", "prompt_tokens"])
    mine = contexts[contexts["teacher"] == configuration.teacher].set_index("question")
    kept = frame["pass_rate"].notna() & ~frame["question"].isin(skipped.loc[skipped["teacher"].isna(), "question"])
    if configuration.teacher is not None:
        kept &= frame["question"].isin(mine.index)
    left_out = reasons.reindex(frame.loc[~kept, "question"]).fillna("not scored").value_counts().to_dict()
    frame = frame[kept]
    if frame.empty:
        raise GradalignError(
            f"configuration {configuration.name!r} has no question in this run: {', '.join(left_out) or 'none'}"
        )
    weight = configuration.questions.weights(frame["pass_rate"].to_numpy(dtype=np.float64))
    if np.isnan(weight).any():
        raise GradalignError(f"configuration {configuration.name!r} gives every question weight 0: all pass rates are 0 or 1")
    taught = mine.reindex(frame["question"]) if configuration.teacher is not None else None
    columns = {
        "question": frame["question"],
        "prompt": frame["prompt"],
        "answer": frame["answer"],
        "kind": frame["kind"],
        "choices": frame["choices"],
        "pass_rate": frame["pass_rate"],
        "weight": weight,
        "teacher_message": [None] * len(frame) if taught is None else taught["message"].to_list(),
        "teacher_system": [None] * len(frame)
        if taught is None
        else [None if pd.isna(system) else system for system in taught["system"]],
        "teacher_prompt_tokens": [None] * len(frame) if taught is None else taught["prompt_tokens"].to_list(),
    }
    return pa.table(
        {name: pa.array(columns[name], QUESTIONS.field(name).type) for name in QUESTIONS.names}, QUESTIONS
    ), left_out


def token_table(run: Run, configuration: Configuration, questions: pa.Table) -> pa.Table:
    """One row for each token of the base rollouts of `questions` (schema `TOKENS`); joins on question, rollout, position."""
    ids = questions["question"].to_pylist()
    table = run.table("rollouts", ["question", "purpose", "rollout", "tokens", "reward"])
    table = table.filter(pc.equal(table["purpose"], "base"))
    rollouts = table.to_pandas()
    place = pd.Series(np.arange(len(ids)), index=ids)
    rollouts = rollouts[rollouts["question"].isin(place.index)]
    rollouts = rollouts.assign(place=place.loc[rollouts["question"]].to_numpy()).sort_values(["place", "rollout"])
    sequences, reward, at = rollouts["tokens"].to_list(), rollouts["reward"].to_numpy(), rollouts["place"].to_numpy()
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    row = np.repeat(np.arange(len(sequences)), lengths)
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    node = _nodes(sequences, at)
    if configuration.tokens.kind == "all":
        weight = np.ones(len(row))
    elif configuration.tokens.kind == "incorrect_paths":
        weight = 1.0 - reward[row]
    else:
        weight = _node_weights(run, configuration, ids, at[row], node)
    question = pa.DictionaryArray.from_arrays(pa.array(at[row], pa.int32()), pa.array(ids, pa.string()))
    return pa.table(
        {
            "question": question.cast(pa.string()),
            "rollout": rollouts["rollout"].to_numpy()[row],
            "position": position,
            "token": np.concatenate([*sequences, np.zeros(0, dtype=np.int64)]).astype(np.int64),
            "node": node,
            "weight": pa.array(weight, pa.float64(), from_pandas=True),
        },
        TOKENS,
    )


def _nodes(sequences: list[np.ndarray], at: np.ndarray) -> np.ndarray:
    """The node at which each token was chosen, in the order of the rollouts, each question's in a tree of its own."""
    bounds = np.flatnonzero(np.diff(at, prepend=-1, append=-1))
    found = []
    for first, last in pairwise(bounds):
        origin_RT = build_tree(sequences[first:last]).origin_RT()
        found.append(origin_RT[origin_RT >= 0])
    return np.concatenate([*found, np.zeros(0, dtype=np.int64)])


def _node_weights(run: Run, configuration: Configuration, ids: list[str], at: np.ndarray, node: np.ndarray) -> np.ndarray:
    """The weight that ranks a configuration's nodes, at nodes by place of the question and number; NaN where it is unknown."""
    tokens = configuration.tokens
    if tokens.kind == "positive_alignment":
        rows = run.frame("alignment", ["question", "node", "teacher", "objective", "dot"])
        teacher, objective = configuration.pairs[0]
        rows = rows[(rows["teacher"] == teacher) & (rows["objective"] == objective) & rows["question"].isin(ids)]
        factor = (rows["dot"] > 0).to_numpy(dtype=np.float64)
    else:
        rows = node_factors(run, ids, [tokens])
        factor = rows[str(tokens)].to_numpy(dtype=np.float64)
    if rows.empty:
        return np.full(len(node), np.nan)
    known = pd.Series(np.arange(len(ids)), index=ids).loc[rows["question"]].to_numpy(), rows["node"].to_numpy()
    base = int(max(known[1].max(), node.max(initial=0))) + 1
    key, wanted = known[0] * base + known[1], at * base + node
    order = np.argsort(key)
    near = order[np.minimum(np.searchsorted(key[order], wanted), len(key) - 1)]
    return np.where(key[near] == wanted, factor[near], np.nan)
