"""Two runs side by side: what was set differently, and how the same teachers and objectives score in each."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gradalign.findings.ranking import rank
from gradalign.findings.standing import KEYS, standing_of
from gradalign.findings.wording import SCORE_HEADS, SCORE_SCALE, score_cell
from gradalign.inference import influence_interval
from gradalign.sheets import Head, Remark, Sheet, Shown, signed
from gradalign.store import Run

_PAIRED = "drive"
_ENDS = ("", "_low", "_high")
_APART = "The runs share no question, so that differences are not paired and not given."


@dataclass(frozen=True, eq=False)
class RunComparison(Shown):
    """`settings`: name, one, other, for every setting that differs. `frame`: teacher, objective, then each ranking's score `by` with its
    interval (`one`, `other`), and the `difference` in drive, other less one, paired over the questions that both runs have (`shared`)."""

    settings: pd.DataFrame
    frame: pd.DataFrame
    by: str
    shared: int

    def sheets(self) -> list[Sheet]:
        """What differs, and the scores side by side."""
        settings = Sheet(
            "Settings that differ",
            (Head("setting", number=False), Head("this run", number=False), Head("the other", number=False)),
            tuple(tuple(row) for row in self.settings.astype(str).itertuples(index=False)),
        )
        scale = {
            "one": SCORE_SCALE.get(self.by, 1.0),
            "other": SCORE_SCALE.get(self.by, 1.0),
            "difference": SCORE_SCALE[_PAIRED],
        }
        show = {n: signed(np.asarray(self.frame[[n, f"{n}_low", f"{n}_high"]], dtype=np.float64), k) for n, k in scale.items()}
        rows = [
            (row["teacher"], row["objective"],
             *(score_cell(row, name, show[name]) for name in ("one", "other", "difference")))
            for row in self.frame.to_dict("records")
        ]  # fmt: skip
        label = SCORE_HEADS[self.by]
        heads = (
            Head("teacher", number=False), Head("objective", number=False), Head(f"{label}, this run [95%]"),
            Head(f"{label}, the other [95%]"), Head("drive ·10³, the other less this [95%]", strong=True),
        )  # fmt: skip
        said = f"Differences are paired over {self.shared} questions that both runs have." if self.shared else _APART
        return [settings, Sheet("Scores in both runs", heads, tuple(rows), (Remark(said, "note"),))]


def compare_runs(run: Run, other: Run, draws: int = 2000, seed: int = 0) -> RunComparison:
    """Compare another run with this one, on teachers and objectives that both have."""
    one, two = rank(run, draws=draws, seed=seed), rank(other, draws=draws, seed=seed)
    by = one.by if one.by == two.by else _PAIRED
    columns = [*KEYS, by, f"{by}_low", f"{by}_high"]
    frame = one.frame[columns].merge(two.frame[columns], on=KEYS, suffixes=("", " other"))
    frame.columns = [*KEYS, *(f"{name}{end}" for name in ("one", "other") for end in _ENDS)]
    differences, shared = _differences(run, other, [*zip(frame["teacher"], frame["objective"], strict=True)])
    for end, values in zip(_ENDS, differences, strict=True):
        frame[f"difference{end}"] = values
    names = sorted({*run.identity, *other.identity})
    settings = [(name, run.identity.get(name, "-"), other.identity.get(name, "-")) for name in names]
    differing = pd.DataFrame([row for row in settings if row[1] != row[2]], columns=["setting", "one", "other"], dtype=object)
    return RunComparison(differing, frame, by, shared)


def _differences(run: Run, other: Run, keys: Sequence[tuple[str, str]]) -> tuple[np.ndarray, int]:
    """Difference in drive of each pair, low and high end (3, M), and the number of questions that all of them share."""
    tables = [each.frame("scores") for each in (run, other)]
    both = {*tables[0]["question"]} & {*tables[1]["question"]}
    if not keys or not both:
        return np.full((3, len(keys)), np.nan), 0
    teachers, objectives = (list(dict.fromkeys(part)) for part in zip(*keys, strict=True))
    standings = [standing_of(t[t["question"].isin(both) & t["teacher"].isin(teachers)], teachers, objectives) for t in tables]
    shared = [question for question in standings[0].questions if question in standings[1].questions]
    if not shared:
        return np.full((3, len(keys)), np.nan), 0
    one, two = (s.on(shared) for s in standings)
    mine, theirs = ([s.keys.index(key) for key in keys] for s in (one, two))
    difference = two.score(_PAIRED)[theirs] - one.score(_PAIRED)[mine]
    influence = two.influence(_PAIRED)[theirs] - one.influence(_PAIRED)[mine]
    return np.stack([difference, *influence_interval(difference, influence)]), len(shared)
