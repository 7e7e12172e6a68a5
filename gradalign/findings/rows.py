"""Rows of the scored nodes, and the sums that cosines are made of."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from gradalign.store import Run
from gradalign.types import GradalignError

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd", "l2", "similarity", "teacher_entropy", "top_overlap")
SUPPORTS = ("visited", "full")
SUMS = ("cos_dot", "cos_g2", "cos_d2", "cos_lengths", "cos", "informative")
_ALIGNMENT = ("question", "node", "teacher", "objective", "weight", "dot", "dot_se", "d_norm2")
_SCORED = pc.field("scored")
COSINES = ("mean_cosine", "weighted_cosine", "pooled_cosine")


def natural(label: str) -> tuple[int, float, str]:
    """A key that sorts labels which are numbers by their size, and before all others."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)


def require_sampled(run: Run) -> None:
    """Refuse a run whose nodes were taken outright: no average over them speaks of on-policy nodes."""
    if run.identity.get("node_selection") == "top":
        raise GradalignError("this run took the top nodes, for looking; score again with --node-selection pps")


def scored_rows(run: Run, support: str) -> pd.DataFrame:
    """Alignment rows of the scored nodes with the node's numbers beside them."""
    if support not in SUPPORTS:
        raise GradalignError(f"no support {support!r}; choose visited or full")
    suffix = "_visited" if support == "visited" else ""
    nodes = run.frame("nodes", ["question", "node", "informative", f"g_norm2{suffix}", f"g_norm2{suffix}_raw"], _SCORED)
    nodes = nodes.set_axis(["question", "node", "informative", "g_norm2", "g_norm2_raw"], axis=1)
    cosine = "alignment" if suffix else "alignment_full"
    wanted = dict.fromkeys([*_ALIGNMENT, cosine, f"dot{suffix}", f"d_norm2{suffix}"])
    rows = run.frame("alignment", list(wanted)).merge(nodes, on=["question", "node"])
    return rows.assign(cos_dot=rows[f"dot{suffix}"], cos_d2=rows[f"d_norm2{suffix}"], cos=rows[cosine])


def node_rows(run: Run, support: str) -> pd.DataFrame:
    """Those of `scored_rows` with depth, paths and divergences: `depth_share` is depth over the mean length of the question's rollouts."""
    rows = scored_rows(run, support)
    if rows.empty:
        raise GradalignError("the run has no scored node; score with a larger --budget")
    nodes = run.frame("nodes", ["question", "node", "depth", "window", "visits", "visits_wrong", "student_entropy"], _SCORED)
    lengths = run.frame("scores", ["question", "length"]).groupby("question")["length"].first()
    nodes = nodes.assign(
        wrong=nodes["visits_wrong"] / nodes["visits"], depth_share=nodes["depth"] / nodes["question"].map(lengths)
    )
    teachers = run.frame("teachers", ["question", "node", "teacher", *DIVERGENCES], pc.field("teacher_mass").is_valid())
    rows = rows.merge(nodes.drop(columns=["visits", "visits_wrong"]), on=["question", "node"])
    return rows.merge(teachers, on=["question", "node", "teacher"], how="left")


def weigh(rows: pd.DataFrame, weight: pd.Series) -> pd.DataFrame:
    """What the cosines' sums are made of, row by row, each node with its weight."""
    useful = rows["informative"].astype(bool) & rows["cos"].notna()
    return pd.DataFrame({
        "cos_dot": weight * rows["cos_dot"],
        "cos_g2": weight * rows["g_norm2"],
        "cos_d2": weight * rows["cos_d2"],
        "cos_lengths": weight * np.sqrt(rows["g_norm2_raw"] * rows["cos_d2"].clip(lower=0)),
        "cos": (weight * rows["cos"]).where(useful, 0.0),
        "informative": weight.where(useful, 0.0),
    })  # fmt: skip


def cosines(sums: np.ndarray) -> np.ndarray:
    """The `COSINES` from sums in the order of `SUMS` along the last axis; NaN where a denominator is not positive."""
    dot, g2, d2, lengths, cos, informative = np.moveaxis(sums, -1, 0)
    pooled = np.sqrt(np.maximum(g2, 0) * np.maximum(d2, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack(
            [np.where(under > 0, over / under, np.nan) for over, under in ((cos, informative), (dot, lengths), (dot, pooled))],
            -1,
        )
