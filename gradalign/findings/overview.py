"""What alignment goes with: divergences, depth, difficulty; and what keeping only well-aligned tokens would keep."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
# pyright: reportReturnType=false, reportOptionalOperand=false, reportCallIssue=false

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from gradalign.findings.associations import across_questions, over_nodes, within_questions
from gradalign.findings.rows import COSINES, SUMS, cosines, natural, node_rows, require_sampled, weigh
from gradalign.findings.standing import KEYS
from gradalign.inference import bootstrap_counts, percentile_interval
from gradalign.sheets import Head, Remark, Sheet, Shown, interval, number, percent
from gradalign.store import Run

QUANTITIES = {
    "reverse_kl": "KL(student || teacher)",
    "forward_kl": "KL(teacher || student)",
    "jsd": "Jensen-Shannon divergence",
    "l2": "L2 distance",
    "similarity": "cosine similarity of the distributions",
    "student_entropy": "student's entropy",
    "teacher_entropy": "teacher's entropy",
    "top_overlap": "overlap of the top 10",
    "depth_share": "depth over mean length",
}
PROFILES = {"depth": "normalised depth", "window": "depth in tokens", "difficulty": "difficulty", "pass_rate": "pass rate"}
_SHORT = dict(
    zip(QUANTITIES, ("KL s||t", "KL t||s", "JSD", "L2", "similar", "H stud.", "H teach.", "top 10", "depth"), strict=True)
)
_SPARE = ("forward_kl", "jsd", "l2", "teacher_entropy")
_DEPTHS = (0.0, 0.2, 0.4, 0.6, 0.8, np.inf)
_RATES = (0.0, 1 / 3, 2 / 3, np.inf)
_BY_CHANCE = 0.3989422804014327  # E max(0, z) of a standard normal z


@dataclass(frozen=True, eq=False)
class AlignmentFindings(Shown):
    """What the alignment of a run's nodes goes with, for every teacher and objective; intervals are over questions.

    `associations`: quantity, nodes, questions, then rank correlations with alignment `within` questions, `across` them and over all
    nodes together (`pooled`), each with `_low` and `_high`. `profiles`: by (depth, window, difficulty or pass_rate), group, questions,
    nodes, then mean, weighted and pooled cosine with their intervals. `selective`: `known`, the share of on-policy tokens at which
    success was seen to differ, and of these `kept`, the share with <g, d> above 0 (noise alone gives a half); `drive` and `drive_kept`,
    their sums over all of these and over the kept ones, per token; `by_chance`, the share of `drive_kept` that noise alone would give;
    `gain_ratio`, gain of the kept ones over that of all, which choosing by the same numbers raises by itself.
    """

    associations: pd.DataFrame
    profiles: pd.DataFrame
    selective: pd.DataFrame
    questions: int

    def sheets(self) -> list[Sheet]:
        """Correlations, cosines by depth, window and difficulty, and what selection would keep."""
        profiles = [self.profile_sheet(by) for by in dict.fromkeys(self.profiles["by"])]
        return [*self.association_sheets(), *profiles, self.selective_sheet()]

    def association_sheets(self) -> list[Sheet]:
        """Rank correlations within and across questions."""
        heads = (*_PAIR, *(Head(short, spare=name in _SPARE) for name, short in _SHORT.items()))
        drawn = "Alignment is estimated from few rollouts a node, which draws every correlation with it toward 0."
        said = (Remark(_STARRED, "note"), Remark(drawn, "note"))
        return [
            Sheet(
                f"Rank correlation of alignment, {words}",
                heads,
                _crossed(self.associations, "quantity", tuple(_SHORT), name),
                below,
            )
            for name, words, below in (("within", "within questions", ()), ("across", "of questions' means", said))
        ]

    def profile_sheet(self, by: str) -> Sheet:
        """Mean cosines by depth, window, difficulty or pass_rate."""
        frame = self.profiles[self.profiles["by"] == by]
        names = list(dict.fromkeys(frame.loc[frame["nodes"] > 0, "group"]))
        heads = (*_PAIR, *(Head(str(name)) for name in names))
        return Sheet(f"Mean cosine by {PROFILES[by]}", heads, _crossed(frame, "group", names, "mean_cosine"))

    def selective_sheet(self) -> Sheet:
        """What keeping only the tokens with <g, d> above 0 would keep."""
        rows = [
            (row["teacher"], row["objective"], percent(row["known"]),
             f"{percent(row['kept'])} {interval(row['kept_low'], row['kept_high'], percent)}",
             number(row["drive"] * 1e3, "+.3g"), number(row["drive_kept"] * 1e3, "+.3g"), percent(row["by_chance"]),
             number(row["gain_ratio"], ".2f"))
            for row in self.selective.to_dict("records")
        ]  # fmt: skip
        heads = (*_PAIR, Head("known"), Head("kept [95%]", strong=True), Head("drive ·10³"), Head("kept ·10³"), Head("chance"),
                 Head("gain ratio", spare=True))  # fmt: skip
        title = "If only tokens pushed toward success were kept"
        return Sheet(title, heads, tuple(rows), (Remark(_ORACLE, "note"),))


def alignment_findings(run: Run, support: str = "visited", draws: int = 1000, seed: int = 0) -> AlignmentFindings:
    """Relate alignment to what is known of each node without rollouts (arXiv 2605.10889 does so node by node).

    Nodes count by their visits over their chance of being chosen. Correlations are over informative nodes.
    """
    require_sampled(run)
    rows = node_rows(run, support)
    rows["place"], names = pd.factorize(rows["question"], sort=True)
    questions = run.frame("questions", ["question", "pass_rate", "difficulty"]).set_index("question").loc[names]
    counts = bootstrap_counts(len(names), draws, seed).astype(np.float64)
    groups = dict(_groups(rows, questions))
    associations, profiles, selective = [], [], []
    for key, mine in rows.groupby(KEYS, sort=True, observed=True):
        named = dict(zip(KEYS, key, strict=True))
        associations += [named | row for row in _associations(mine, counts)]
        profiles += [named | row for row in _profiles(mine, groups, counts)]
        selective.append(named | _selective(mine, counts))
    return AlignmentFindings(*(pd.DataFrame(found) for found in (associations, profiles, selective)), len(names))


def _associations(rows: pd.DataFrame, counts: np.ndarray) -> Iterator[dict]:
    useful = rows[rows["informative"].astype(bool) & rows["cos"].notna()]
    for quantity in QUANTITIES:
        known = useful[useful[quantity].notna()]
        columns = [known[name].to_numpy(dtype=np.float64) for name in (quantity, "cos", "weight")]
        row = {"quantity": quantity, "nodes": len(known), "questions": known["place"].nunique()}
        for name, correlate in (("within", within_questions), ("across", across_questions), ("pooled", over_nodes)):
            found = correlate(*columns, known["place"].to_numpy(), counts) if len(known) else None
            row |= {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
            if found is not None:
                row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        yield row


def _groups(rows: pd.DataFrame, questions: pd.DataFrame) -> Iterator[tuple[str, tuple[list[str], pd.Series]]]:
    """Ways to group nodes: names of the groups, and the place of every row's group (by index; -1 is none)."""
    yield (
        "depth",
        _binned(
            rows["depth_share"], _DEPTHS, lambda low, high: f"{low:.1f} to {high:.1f}" if high < np.inf else f"{low:.1f} on"
        ),
    )
    windows = sorted(rows["window"].unique())
    place = {window: i for i, window in enumerate(windows)}
    names = ["0" if window == 0 else f"{2 ** (window - 1)} to {2**window - 1}" for window in windows]
    yield "window", (names, rows["window"].map(place))
    stated = sorted(questions["difficulty"].dropna().unique(), key=natural)
    if stated:
        place = {name: i for i, name in enumerate(stated)}
        of_question = questions["difficulty"].map(place).fillna(-1).astype(int).to_numpy()
        yield "difficulty", (stated, pd.Series(of_question[rows["place"]], index=rows.index))
    rates = pd.Series(questions["pass_rate"].to_numpy()[rows["place"]], index=rows.index)
    yield "pass_rate", _binned(rates, _RATES, lambda low, high: f"{low:.2f} to {min(high, 1):.2f}")


def _binned(values: pd.Series, edges: tuple[float, ...], name: Callable[[float, float], str]) -> tuple[list[str], pd.Series]:
    place = np.searchsorted(edges, values.to_numpy(), side="right") - 1
    return [name(low, high) for low, high in pairwise(edges)], pd.Series(place, index=values.index)


def _profiles(rows: pd.DataFrame, groups: dict[str, tuple[list[str], pd.Series]], counts: np.ndarray) -> Iterator[dict]:
    terms = weigh(rows, rows["weight"])[list(SUMS)].fillna(0.0).to_numpy(dtype=np.float64)
    question, held = rows["place"].to_numpy(), counts.shape[1]
    useful = rows["informative"].astype(bool).to_numpy() & rows["cos"].notna().to_numpy()
    for by, (names, places) in groups.items():
        place = places.loc[rows.index].to_numpy()
        for group, name in enumerate(names):
            at = place == group
            sums_QS = np.stack([np.bincount(question[at], column[at], held) for column in terms.T], -1)
            seen = len(np.unique(question[at & useful]))
            low, high = percentile_interval(cosines(counts @ sums_QS), seen)
            row = {"by": by, "group": name, "questions": seen, "nodes": int((at & useful).sum())}
            for i, (cosine, value) in enumerate(zip(COSINES, cosines(sums_QS.sum(0)), strict=True)):
                row |= {cosine: float(value), f"{cosine}_low": float(low[i]), f"{cosine}_high": float(high[i])}
            yield row


def _selective(rows: pd.DataFrame, counts: np.ndarray) -> dict:
    """Of tokens at which some success differed: where none did, <g, d> is 0 for want of rollouts, and on neither side."""
    told = rows[rows["dot"].notna()]
    known = told[told["dot"] != 0]
    weight, dot = (known[name].to_numpy(dtype=np.float64) for name in ("weight", "dot"))
    noise, norm2 = known["dot_se"].fillna(0.0).to_numpy(), known["d_norm2"].to_numpy(dtype=np.float64)
    positive = dot > 0
    terms = [weight, weight * positive, weight * dot, weight * dot * positive, weight * noise * _BY_CHANCE, weight * norm2,
             weight * norm2 * positive]  # fmt: skip
    sums_QS = np.stack([np.bincount(known["place"].to_numpy(), term, counts.shape[1]) for term in terms], -1)

    def scores(sums: np.ndarray) -> np.ndarray:
        all_, kept, whole, selected, chance, steps, selected_steps = np.moveaxis(sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = (selected / np.sqrt(selected_steps)) / (whole / np.sqrt(steps))
            columns = (kept / all_, whole / all_, selected / all_, chance / selected, np.where(whole > 0, ratio, np.nan))
        return np.stack([np.where(np.isfinite(column), column, np.nan) for column in columns], -1)

    low, high = percentile_interval(scores(counts @ sums_QS), known["question"].nunique())
    held = float(told["weight"].sum())
    row: dict = {"questions": known["question"].nunique(), "nodes": len(known)}
    row["known"] = float(weight.sum()) / held if held > 0 else np.nan
    for i, name in enumerate(("kept", "drive", "drive_kept", "by_chance", "gain_ratio")):
        row |= {name: float(scores(sums_QS.sum(0))[i]), f"{name}_low": float(low[i]), f"{name}_high": float(high[i])}
    return row


_PAIR = (Head("teacher", number=False), Head("objective", number=False))
_ORACLE = (
    "Known: the share of tokens at which success was seen to differ. Kept: of these, the share with <g, d> above 0 (noise alone gives a "
    "half), and the drive of these alone. An oracle analysis: training does not know which they are, and choosing by noisy numbers "
    "flatters them. Chance: how much of that drive noise alone would give."
)
_STARRED = "* its 95% interval over questions lies on one side of 0; the intervals stand in the whole table."


def _cell(row: dict, name: str) -> str:
    """A number, starred where its interval lies on one side of 0."""
    if np.isnan(row[name]):
        return "-"
    return f"{row[name]:+.2f}{'*' if row[f'{name}_low'] > 0 or row[f'{name}_high'] < 0 else ' '}"


def _crossed(frame: pd.DataFrame, column: str, names: Sequence[str], value: str) -> tuple[tuple[str, ...], ...]:
    """One row a teacher and objective, one cell for each of the names in `column`."""
    found = []
    for key, rows in frame.groupby(KEYS, sort=True, observed=True):
        by_name = {row[column]: row for row in rows.to_dict("records")}
        found.append((*key, *(_cell(by_name[name], value) if name in by_name else "-" for name in names)))
    return tuple(found)
