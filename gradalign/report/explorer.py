"""Token data for the report's explorer: a packet for each question, compressed, as many as the page may hold.

A packet has the question's prompts, some of its rollouts, and at their nodes all that `findings.tokens` knows. Numbers have five
significant digits, those of every node (divergences, entropies) three.
"""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

import base64
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from gradalign.findings.tokens import QUANTITIES, QuestionTokens, TokenRollout, pairs_of, question_tokens
from gradalign.store import Run
from gradalign.types import REWARDS

_MOST_ROLLOUTS = 8
_TEACHER = ("reverse_kl", "forward_kl", "advantage")
_PAIR = ("alignment", "dot", "dot_se")
_NODE = ("depth", "visits", "student_entropy", "value", "g_norm2")


@dataclass(frozen=True)
class Explorer:
    """What the page needs: `index` as JSON-ready values and a base64 packet for each question in it; of how many questions these are."""

    index: dict[str, Any]
    packets: tuple[str, ...]
    questions: int
    whole: bool


def pack_tokens(
    run: Run,
    most_questions: int = 200,
    most_bytes: int = 5_500_000,
    done: Callable[[float], None] = lambda share: None,
) -> Explorer:
    """Pack up to `most_questions` questions, in the run's random order, into at most about `most_bytes` of text.

    Where rollouts have to be left out, those that pass the most scored nodes stay, right and wrong ones in turn; a wrong one comes first in
    every other question. `done` is told which share of the work is behind.
    """
    scored = run.frame("questions", ["question", "difficulty", "pass_rate", "scored_nodes"])
    ids = scored.loc[scored["scored_nodes"] > 0, "question"].tolist()
    chosen, pairs = ids[:most_questions], pairs_of(run)
    teachers = list(dict.fromkeys(teacher for teacher, _ in pairs if teacher != REWARDS)) or [REWARDS]
    share, packets, listed, whole, room = most_bytes // max(len(chosen), 1), [], [], True, most_bytes
    for first in range(0, len(chosen), 50):
        for view in question_tokens(run, chosen[first : first + 50]) if room >= 0 else ():
            packet, shown = _packet(view, teachers, pairs, share, wrong_first=len(packets) % 2 == 0)
            room -= len(packet)
            if room < 0 and packets:
                break
            packets.append(packet)
            done(len(packets) / len(chosen))
            whole &= shown == len(view.rollouts)
            listed.append(_listed(view, shown))
    order = sorted(range(len(listed)), key=lambda i: listed[i]["id"])
    index = {
        "teachers": teachers,
        "pairs": pairs,
        "rewards": REWARDS,
        "quantities": [vars(quantity) for quantity in QUANTITIES],
        "questions": [listed[i] for i in order],
    }
    return Explorer(index, tuple(packets[i] for i in order), len(ids), whole and len(packets) == len(ids))


def _listed(view: QuestionTokens, shown: int) -> dict[str, Any]:
    """What the list of questions says of one."""
    question = view.question
    difficulty, rate = (None if pd.isna(question[name]) else question[name] for name in ("difficulty", "pass_rate"))
    return {
        "id": question["question"],
        "difficulty": difficulty,
        "pass_rate": rate,
        "shown": shown,
        "rollouts": len(view.rollouts),
    }


def _packet(
    view: QuestionTokens, teachers: Sequence[str], pairs: Sequence[tuple[str, str]], most: int, wrong_first: bool
) -> tuple[str, int]:
    """The question as base64 of compressed JSON, with as many rollouts as fit, at least one; and how many these are."""
    order = _worth_showing(view, wrong_first)
    count = min(len(order), _MOST_ROLLOUTS)
    while True:
        content = json.dumps(
            _content(view, order[:count], teachers, pairs), separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        packet = base64.b64encode(gzip.compress(content.encode("utf-8", "replace"), 9, mtime=0)).decode("ascii")
        if len(packet) <= most or count == 1:
            return packet, count
        count = max(1, min(count - 1, int(count * most / len(packet))))


def _worth_showing(view: QuestionTokens, wrong_first: bool) -> list[TokenRollout]:
    """Rollouts that pass the most scored nodes first, wrong and right ones in turn."""
    scored = view.nodes.index.to_numpy()[view.nodes["scored"].to_numpy(dtype=bool)]
    order = sorted(view.rollouts, key=lambda r: (-np.isin(r.nodes, scored).sum(), r.number))
    wrong, right = ([r for r in order if (r.reward == 1) == kind] for kind in (False, True))
    found = []
    while wrong or right:
        found += [kind.pop(0) for kind in ((wrong, right) if wrong_first else (right, wrong)) if kind]
    return found


def _content(
    view: QuestionTokens, rollouts: Sequence[TokenRollout], teachers: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    nodes = np.unique(np.concatenate([rollout.nodes for rollout in rollouts]))
    place = {int(node): i for i, node in enumerate(nodes)}
    at = view.nodes.reindex(nodes)
    return {
        "prompt": view.question["prompt"],
        "answer": view.question["answer"],
        "first": sorted(r.number for r in rollouts).index(rollouts[0].number),
        "messages": [view.messages.get(teacher) for teacher in teachers],
        "rollouts": [
            {"number": r.number, "reward": r.reward, "outcome": r.outcome, "stop": r.stop, "answer": r.read_answer,
             "pieces": list(r.pieces), "tokens": r.tokens.tolist(), "nodes": [place[int(node)] for node in r.nodes]}
            for r in sorted(rollouts, key=lambda r: r.number)
        ],
        "nodes": {"node": nodes.tolist(), "informative": [None if pd.isna(v) else bool(v) for v in at["informative"]],
                  **{name: _column(at[name], 3) for name in _NODE}},
        "teachers": _by(view.teachers, _TEACHER, nodes, [(t,) for t in teachers], 3),
        "pairs": _by(view.pairs, _PAIR, nodes, pairs),
        "tried": _tried(view, nodes, teachers, pairs),
    }  # fmt: skip


def _by(
    frame: pd.DataFrame, columns: Sequence[str], rows: pd.Index | np.ndarray, keys: Sequence[tuple[str, ...]], digits: int = 5
) -> list[dict[str, list[float | None]]]:
    """Columns of each key, in the order of the rows, missing where there is nothing; the frame's index ends with the key's levels."""
    if not keys:
        return []
    others = frame.index.names[: -len(keys[0])]
    rows = pd.Index(rows)
    row = rows.get_indexer(frame.index.droplevel([name for name in frame.index.names if name not in others]))
    among = frame.index.droplevel(others)
    key = (pd.MultiIndex.from_tuples(keys) if len(keys[0]) > 1 else pd.Index([only for (only,) in keys])).get_indexer(among)
    there = (row >= 0) & (key >= 0)
    found: list[dict[str, list[float | None]]] = [{} for _ in keys]
    for name in columns:
        whole = np.full((len(keys), len(rows)), np.nan)
        whole[key[there], row[there]] = frame[name].to_numpy(dtype=np.float64)[there]
        for one, values in zip(found, whole, strict=True):
            one[name] = _column(values, digits)
    return found


def _tried(
    view: QuestionTokens, nodes: np.ndarray, teachers: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> dict[int, dict[str, Any]]:
    """By place of the node: the tokens tried there, likeliest first, with tau of every teacher and d of every pair."""
    rows = view.branches[view.branches.index.get_level_values("node").isin(nodes)].reset_index()
    rows = rows.sort_values(["node", "student_prob"], ascending=[True, False], ignore_index=True)
    told = view.directions.set_index("token", append=True).reorder_levels(["node", "token", "teacher", "objective"])
    keys = pd.MultiIndex.from_frame(rows[["node", "token"]])
    shared = told.droplevel("objective").dropna(subset="teacher_prob")
    d = [column["direction"] for column in _by(told, ["direction"], keys, pairs)]
    tau = [column["teacher_prob"] for column in _by(shared, ["teacher_prob"], keys, [(teacher,) for teacher in teachers])]
    plain = {"pi": "student_prob", "success": "success", "lower": "lower", "upper": "upper", "g": "ideal"}
    columns = {name: _column(rows[column]) for name, column in plain.items()}
    columns |= {name: rows[column].tolist() for name, column in (("token", "token"), ("text", "token_text"), ("n", "n"))}
    place = {int(node): i for i, node in enumerate(nodes)}
    bounds = np.flatnonzero(np.diff(rows["node"].to_numpy(), prepend=-1, append=-1))
    return {
        place[int(rows["node"].iloc[first])]: {
            **{name: values[first:last] for name, values in columns.items()},
            "tau": [values[first:last] for values in tau],
            "d": [values[first:last] for values in d],
        }
        for first, last in pairwise(bounds)
    }


def _column(values: pd.Series | np.ndarray, digits: int = 5) -> list[float | None]:
    """Numbers to so many significant digits, missing ones as None."""
    exact = np.asarray(values, dtype=np.float64)
    size = np.abs(exact)
    scale = 10.0 ** (digits - 1 - np.floor(np.log10(np.where(np.isfinite(size) & (size > 0), size, 1.0))))
    return [None if number != number else number for number in (np.round(exact * scale) / scale).tolist()]
