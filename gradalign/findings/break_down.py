"""Scores of training configurations by groups of questions or of nodes."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
# pyright: reportReturnType=false, reportOptionalOperand=false

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gradalign.configurations import Configuration
from gradalign.findings.assessed import RANKABLE, Scored
from gradalign.findings.ground import Ground, assess_ground, foretold_on, ground_of, steps_on
from gradalign.findings.notes import CAVEAT
from gradalign.findings.rows import natural
from gradalign.findings.wording import SCORE_HEADS, score_cell, score_formats
from gradalign.sheets import Head, Remark, Sheet, Shown
from gradalign.store import Run
from gradalign.types import GradalignError

BREAK_DOWNS = ("difficulty", "window", "path")


@dataclass(frozen=True, eq=False)
class BreakDown(Shown):
    """Scores of configurations by groups: `difficulty` of the question, depth `window` of the node, or `path`.

    `frame` has a row a group and configuration: by, group, configuration, questions, then each score with `_low` and `_high`.
    """

    frame: pd.DataFrame
    by: str

    def sheets(self) -> list[Sheet]:
        """Transfer where it is known, else drive; and gain."""
        score = "drive" if self.frame["transfer_drive"].isna().all() else "transfer_drive"
        names = dict.fromkeys([score, "drive", "gain"])
        show = score_formats(self.frame, names)
        rows, before = [], None
        for row in self.frame.to_dict("records"):
            group = f"{row['group']} ({row['questions']})" if self.by == "difficulty" else row["group"]
            cells = [score_cell(row, name, show[name]) for name in names]
            rows.append((group if row["group"] != before else "", row["configuration"], *cells))
            before = row["group"]
        heads = [Head(f"{SCORE_HEADS[name]} [95%]", spare=name == "drive" != score) for name in names]
        heads = (Head(self.by, number=False), Head("configuration", number=False), *heads)
        return [Sheet(f"Configurations by {self.by}", heads, tuple(rows), (Remark(CAVEAT, "note"),))]


def break_down(
    run: Run, configurations: Sequence[Configuration], by: str, support: str = "visited", draws: int = 2000, seed: int = 0
) -> BreakDown:
    """Scores of configurations by `difficulty` of the question, depth `window` of the node, or `path` (correct or incorrect).

    Question weights are those of the whole. Windows and paths share out a configuration's sums, estimated from the chosen nodes, so their
    drives add up to the whole drive; a node on both kinds of path counts on each by its share of rollouts. Transfer is known by
    difficulty only.
    """
    if by not in BREAK_DOWNS:
        raise GradalignError(f"cannot break down by {by!r}; choose from {', '.join(BREAK_DOWNS)}")
    ground = ground_of(run, configurations, support)
    frames = []
    if by == "difficulty":
        named = run.frame("questions", ["question", "difficulty"]).set_index("question")["difficulty"].fillna("not stated")
        difficulty = named.loc[list(ground.base.questions)].to_numpy()
        for group in sorted(set(difficulty), key=natural):
            part = ground.part(np.flatnonzero(difficulty == group))
            assessed, _ = assess_ground(part, steps_on(run, part), None, draws, seed, foretold_on(run, part))
            frames.append(_group_rows(by, group, assessed, part))
        return BreakDown(pd.concat(frames, ignore_index=True), by)
    for group, share in _shares(by, ground.rows).items():
        assessed, _ = assess_ground(ground, None, share, draws, seed)
        frames.append(_group_rows(by, group, assessed, ground))
    return BreakDown(pd.concat(frames, ignore_index=True), by)


def _shares(by: str, rows: pd.DataFrame) -> dict[str, Any]:
    """For each group of nodes, how much each row's node belongs to it."""
    if by == "path":
        return {"correct": 1 - rows["wrong"], "incorrect": rows["wrong"]}
    names = {
        window: "[0, 1)" if window == 0 else f"[{2 ** (window - 1)}, {2**window})" for window in sorted(set(rows["window"]))
    }
    return {name: (rows["window"] == window).astype(float) for window, name in names.items()}


def _group_rows(by: str, group: str, assessed: Scored, ground: "Ground") -> pd.DataFrame:
    frame = pd.DataFrame({"by": by, "group": group, "configuration": [c.name for c in ground.usable]})
    frame["questions"] = len(ground.base.questions)
    for name in RANKABLE:
        frame[name], frame[f"{name}_low"], frame[f"{name}_high"] = assessed.score[name], assessed.low[name], assessed.high[name]
    return frame
