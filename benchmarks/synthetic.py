"""Run folders of any size with made-up numbers in them: to measure reading, and to know what tests say where there is nothing to find.

Rows have the schema of a real run and numbers of plausible size; nothing was sampled from any model.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from gradalign.schedule import depth_window
from gradalign.store import Run, RunFolder, load_run
from gradalign.store.schema import TABLES, arrow_schema

TEACHERS = ("ctx:correct_demo", "ctx:wrong_demo", "ctx:answer", "model:large")
OBJECTIVES = ("reverse_kl", "forward_kl")
_WORDS = [" so", " then", " the", " total", " is", " 7", " minus", " 3", ",", " because", "\n"]
_STEP = 64


def write_run(
    path: Path,
    questions: int,
    scored: int,
    visited: int = 0,
    rollouts: int = 16,
    length: int = 48,
    seed: int = 0,
    part: int = 50,
) -> Run:
    """A run of `questions` with `scored` scored nodes each, of `visited` (a path of `length` for each rollout unless given)."""
    rng = np.random.default_rng(seed)
    folder = RunFolder(path)
    identity = {
        "student": "synthetic", "questions": "synthetic", "teachers": list(TEACHERS), "objectives": list(OBJECTIVES), "temperature": 1.0,
        "node_selection": "pps", "seed": seed, "rollouts": rollouts, "max_tokens": length, "tokens": [],
    }  # fmt: skip
    folder.open(identity, {"versions": {"gradalign": "0.1.0"}, "notices": [], "questions": questions})
    visited = visited or rollouts * (length - 8) + 8
    for number, first in enumerate(range(0, questions, part)):
        ids = [f"q{i:05d}" for i in range(first, min(first + part, questions))]
        folder.write(number, _part(rng, ids, first, scored, visited, rollouts, length), {})
    return load_run(path)


def _part(
    rng: np.random.Generator, ids: list[str], first: int, scored: int, visited: int, rollouts: int, length: int
) -> dict[str, pa.Table]:
    Q = len(ids)
    rate = rng.beta(2, 2, Q)
    reward_QR = (rng.random((Q, rollouts)) < rate[:, None]).astype(float)
    # every rollout goes its own way after eight common tokens
    common = min(8, length - 1)
    own = np.arange(rollouts)[:, None] * (length - common) + common + np.arange(length - common)
    node_RT = np.concatenate([np.broadcast_to(np.arange(common), (rollouts, common)), own], 1)
    nodes = min(visited, int(node_RT.max()) + 1)
    depth_N = np.zeros(nodes, dtype=np.int64)
    owner_N = np.full(nodes, -1)
    for r in range(rollouts):
        there = node_RT[r] < nodes
        depth_N[node_RT[r][there]] = np.flatnonzero(there)
        owner_N[node_RT[r][there & (np.arange(length) >= common)]] = r
    visits_N = np.where(owner_N < 0, rollouts, 1)
    wrong_QN = np.where(owner_N < 0, (1 - reward_QR).sum(1, keepdims=True), 1 - reward_QR[:, np.maximum(owner_N, 0)])
    chosen_QN = np.argsort(rng.random((Q, nodes)), 1) < scored
    weight_QN = visits_N / rollouts / (scored / nodes)
    size_QN = np.exp(rng.normal(-5, 1, (Q, nodes)))
    question = np.repeat(ids, nodes)
    node = np.tile(np.arange(nodes), Q)
    at = chosen_QN.ravel()

    def only(values: np.ndarray) -> pa.Array:
        return pa.array(np.where(at, np.broadcast_to(values, (Q, nodes)).ravel(), np.nan), from_pandas=True)

    tables = {name: arrow_schema(name).empty_table() for name in TABLES}
    tables["questions"] = _table("questions", Q, question=ids, order=np.arange(first, first + Q), text=[f"Question {i}?" for i in ids],
        prompt=[f"Question {i}?" for i in ids], answer=["yes"] * Q, kind=["boolean"] * Q, difficulty=[str(int(3 * p)) for p in rate],
        rollouts=np.full(Q, rollouts), pass_rate=reward_QR.mean(1), right=reward_QR.sum(1).astype(int), ungradable=np.zeros(Q, int),
        truncated=np.zeros(Q, int), nodes=np.full(Q, nodes), scored_nodes=np.full(Q, scored), targeted_rollouts=np.full(Q, 64),
        sampled_tokens=np.full(Q, rollouts * length))  # fmt: skip
    tables["nodes"] = _table("nodes", Q * nodes, question=question, node=node, parent=node - 1, token=node % len(_WORDS),
        depth=np.tile(depth_N, Q), window=np.tile(depth_window(depth_N), Q), visits=np.tile(visits_N, Q), visits_wrong=wrong_QN.ravel(),
        priority=size_QN.ravel(), inclusion=np.full(Q * nodes, scored / nodes), scored=at, weight=only(weight_QN),
        student_entropy=rng.exponential(0.5, Q * nodes), tried=pa.array(np.full(Q * nodes, 2), mask=~at), student_mass=only(0.97),
        value=only(rate[:, None]), informative=pa.array(rng.random(Q * nodes) < 0.5, mask=~at), g_norm2=only(size_QN**2),
        g_norm2_raw=only(1.5 * size_QN**2), g_norm2_visited=only(size_QN**2), g_norm2_visited_raw=only(1.5 * size_QN**2))  # fmt: skip
    rows = np.flatnonzero(at)
    teachers, pairs = len(TEACHERS), [(t, o) for t in TEACHERS for o in OBJECTIVES]
    N = Q * nodes
    divergences = {
        name: rng.exponential(0.3, N * teachers)
        for name in ("reverse_kl", "forward_kl", "jsd", "l2", "teacher_entropy", "top_overlap", "similarity")
    }
    mass = np.where(np.tile(at, teachers), 0.9, np.nan)
    tables["teachers"] = _table("teachers", N * teachers, question=np.tile(question, teachers), node=np.tile(node, teachers),
        teacher=np.repeat(TEACHERS, N), teacher_mass=pa.array(mass, from_pandas=True),
        advantage=pa.array(mass * rng.normal(0, 0.01, N * teachers), from_pandas=True), **divergences)  # fmt: skip
    M, P = len(rows), len(pairs)
    cosine = np.tanh(rng.standard_normal(M * P) + 0.5 * np.repeat(rng.standard_normal(Q), scored).repeat(P))
    length_d = np.exp(rng.normal(-3, 1, M * P))
    size = np.repeat(size_QN.ravel()[rows], P)
    dot = cosine * size * length_d
    tables["alignment"] = _table("alignment", M * P, question=np.repeat(question[rows], P), node=np.repeat(node[rows], P),
        teacher=np.tile([t for t, _ in pairs], M), objective=np.tile([o for _, o in pairs], M),
        weight=np.repeat(np.broadcast_to(weight_QN, (Q, nodes)).ravel()[rows], P), alignment=cosine, alignment_full=cosine, dot=dot,
        dot_se=np.abs(dot) / 2, dot_visited=dot, dot_visited_se=np.abs(dot) / 2, d_norm2=length_d**2, d_norm2_visited=length_d**2,
        captured=np.full(M * P, 0.9))  # fmt: skip
    tables["scores"] = _table("scores", Q * P, question=np.repeat(ids, P), teacher=np.tile([t for t, _ in pairs], Q),
        objective=np.tile([o for _, o in pairs], Q), length=np.full(Q * P, float(length)), dot=rng.normal(0.01, 0.05, Q * P),
        dot_se=np.full(Q * P, 0.02), d_norm2=rng.gamma(2, 0.5, Q * P), advantage=rng.normal(0, 0.05, Q * P),
        advantage_se=np.full(Q * P, 0.02))  # fmt: skip
    steps = Q * (P + 1)
    tables["steps"] = _table("steps", steps, question=np.repeat(ids, P + 1),
        teacher=np.tile(np.array([None, *(t for t, _ in pairs)], dtype=object), Q),
        objective=np.tile(np.array([None, *(o for _, o in pairs)], dtype=object), Q), tokens=["all"] * steps,
        exact=np.ones(steps, dtype=bool), exact_logits=np.ones(steps, dtype=bool), step=_lists(rng.standard_normal((steps, _STEP))),
        step_logits=_lists(rng.standard_normal((steps, _STEP))))  # fmt: skip
    tables["rollouts"] = _rollouts(rng, ids, reward_QR, length)
    tables["contexts"] = _table("contexts", Q * teachers, question=np.repeat(ids, teachers), teacher=list(TEACHERS) * Q,
        message=["Question? A correct solution: so then the total is 7."] * (Q * teachers), prompt_tokens=[[1, 2, 3]] * (Q * teachers),
        length=np.full(Q * teachers, 64), answers=[["yes"]] * (Q * teachers))  # fmt: skip
    two = np.repeat(rows, 2)
    success = rng.random(len(two))
    token = np.tile([3, 5], M)
    tables["branches"] = _table("branches", len(two), question=question[two], node=node[two], token=token,
        token_text=[_WORDS[t] for t in token], student_prob=np.tile([0.8, 0.15], M), candidate=np.ones(len(two), bool),
        in_support=np.ones(len(two), bool), n=np.full(len(two), 8), success=success, lower=success / 2, upper=(1 + success) / 2,
        shrunken=success, exact=np.zeros(len(two), bool), ideal=rng.normal(0, 0.01, len(two)))  # fmt: skip
    return tables


def _rollouts(rng: np.random.Generator, ids: list[str], reward_QR: np.ndarray, length: int) -> pa.Table:
    count = reward_QR.size
    tokens = rng.integers(0, len(_WORDS), (count, length))
    pieces = [[_WORDS[t] for t in row] for row in tokens]
    return _table("rollouts", count, question=np.repeat(ids, reward_QR.shape[1]), purpose=["base"] * count,
        rollout=np.tile(np.arange(reward_QR.shape[1]), len(ids)), source=["synthetic"] * count, text=["".join(row) for row in pieces],
        pieces=pieces, tokens=tokens.tolist(), logprobs=[[-0.5] * length] * count, stop=["stop"] * count, reward=reward_QR.ravel(),
        outcome=np.where(reward_QR.ravel() > 0, "right", "wrong"), read_answer=["yes"] * count)  # fmt: skip


def _lists(values: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(np.arange(0, values.size + 1, values.shape[1]), pa.array(values.ravel().astype(np.float32)))


def _table(name: str, rows: int, **columns) -> pa.Table:
    """A table of the run's schema; a column that is not given is missing throughout."""
    schema = arrow_schema(name)
    arrays = [
        pa.nulls(rows, field.type) if field.name not in columns else pa.array(columns[field.name]).cast(field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
