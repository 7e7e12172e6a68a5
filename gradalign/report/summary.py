"""What a run found, in sentences: the first thing that a reader of the report sees."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from collections.abc import Iterator

from gradalign.findings import ContextScreening, PathComparison, Ranking
from gradalign.findings.assessed import OF_OTHERS
from gradalign.findings.wording import SCORE_HEADS, score_cell, score_formats
from gradalign.sheets import Remark
from gradalign.types import REWARDS

_LEVEL = 0.05


def summarise(ranking: Ranking | None, paths: PathComparison | None, screening: ContextScreening | None) -> list[Remark]:
    """The sentences, most important first."""
    found: list[Remark] = []
    if ranking is not None:
        found += _of_ranking(ranking)
        found += [Remark(warning, "warning") for warning in ranking.warnings]
    if screening is not None:
        found += [Remark(screening.recommendation), *(Remark(f"But {doubt}.", "warning") for doubt in screening.doubts)]
    if paths is not None:
        found += _of_paths(paths)
    return found


def _of_ranking(ranking: Ranking) -> Iterator[Remark]:
    frame, by = ranking.frame, ranking.by
    show = score_formats(frame, (by,))[by]
    best, worst = frame.iloc[0].to_dict(), frame[frame[by].notna()].iloc[-1].to_dict()
    where = "on other questions" if by in OF_OTHERS else "where it is taken"
    value = f"{SCORE_HEADS[by]} {score_cell(best, by, show)}"
    step = f"Over {ranking.questions} questions, a {_step(best)}"
    if best[f"{by}_low"] > 0:
        yield Remark(f"{step} raises success {where} most: {value}.")
    elif best[by] > 0:
        yield Remark(f"{step} does best for success {where}, but not beyond doubt: {value}.")
    else:
        yield Remark(f"{step} does best for success {where}, and even that shows no gain: {value}.", "warning")
    ties = int(frame["tied"].sum()) - 1
    if ties:
        yield Remark(f"{ties} of {len(frame) - 1} others cannot be told from it: more questions would tell.", "note")
    if worst[f"{by}_high"] < 0:
        value = score_cell(worst, by, show)
        yield Remark(f"A {_step(worst)} would do harm: {value}.", "warning")


def _step(row: dict) -> str:
    return f"step of {row['objective']}" + ("" if row["teacher"] == REWARDS else f" toward {row['teacher']}")


def _of_paths(paths: PathComparison) -> Iterator[Remark]:
    rows = paths.frame[paths.frame["cosine"] == "mean"]
    told = rows[rows["p_adjusted"] < _LEVEL]
    higher, lower = (told["paired"] > 0).sum(), (told["paired"] < 0).sum()
    words = [f"higher on incorrect than on correct paths for {higher}"] if higher else []
    words += [f"lower for {lower}"] if lower else []
    if words:
        yield Remark(
            f"Of {len(rows)} teachers and objectives, alignment is {', '.join(words)} (by question, p adjusted below {_LEVEL})."
        )
    else:
        yield Remark("Alignment on correct and on incorrect paths cannot be told apart, question by question.", "note")
