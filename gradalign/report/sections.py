"""The sections of the report, each from one finding; where a run cannot give a finding, its section says why."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportCallIssue=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from gradalign.configurations import Configuration
from gradalign.findings import (
    AlignmentFindings,
    ContextScreening,
    PacedDiagnostics,
    PathComparison,
    Ranking,
    alignment_findings,
    compare_paths,
    compare_runs,
    paced_diagnostics,
    rank,
    rank_configurations,
    screen_contexts,
)
from gradalign.findings.foretold import FORETOLD
from gradalign.findings.overview import PROFILES
from gradalign.findings.rows import node_rows
from gradalign.findings.tokens import pairs_of
from gradalign.findings.wording import SCORE_HEADS, SCORE_SCALE
from gradalign.report import figures
from gradalign.report.summary import summarise
from gradalign.sheets import Head, Remark, Sheet, Shown
from gradalign.store import Run
from gradalign.types import REWARDS, GradalignError

_POINTS = 3000  # of the scatter
_F = TypeVar("_F", bound=Shown)
Picture = tuple[str, str]  # SVG, and what it shows


@dataclass(frozen=True)
class Section:
    """A part of the page: what it asks in a sentence, figures, tables, and remarks."""

    id: str
    title: str
    lead: str
    figures: tuple[Picture, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class _Page:
    """What every section may look at: the run, a seed, and what is drawn where something has to be chosen: the first objective that has
    a teacher, and its teachers, both in the order of the ranking."""

    run: Run
    seed: int
    objective: str
    teachers: tuple[str, ...]

    def drawn(self, frame: pd.DataFrame) -> tuple[list[str], str]:
        """The first teachers that have rows in `frame`, as many as a figure can tell apart, and words for those left out."""
        known = {*frame["teacher"]}
        having = [teacher for teacher in self.teachers if teacher in known]
        more = f"; {figures.MOST} of {len(having)} teachers are drawn, best first" if len(having) > figures.MOST else ""
        return having[: figures.MOST], more


def make_sections(
    run: Run,
    compare: Run | None,
    configurations: Sequence[Configuration],
    draws: int,
    seed: int,
    stage: Callable[[str, float], None],
) -> tuple[list[Remark], list[Section]]:
    """The summary in words and every section, in the order of the page; `stage` is told of each finding and the share that is behind."""
    wanted: dict[str, Callable[[], Shown]] = {
        "ranking": lambda: rank(run, draws=draws, seed=seed),
        "configurations": lambda: rank_configurations(run, configurations, draws=draws, seed=seed),
        "compare": lambda: compare_runs(run, compare or run, draws, seed),
        "paths": lambda: compare_paths(run, draws=draws, seed=seed),
        "depth": lambda: alignment_findings(run, draws=draws, seed=seed),
        "paced": lambda: paced_diagnostics(run, draws=min(draws, 300), seed=seed),
        "contexts": lambda: screen_contexts(run, draws=draws, seed=seed),
    }
    left_out = {name for name, given in (("configurations", configurations), ("compare", compare)) if not given}
    found: dict[str, Any] = {}
    for done, name in enumerate(wanted):
        if name not in left_out:
            stage(_TITLES[name].lower(), done / len(wanted))
            found[name] = _or_reason(wanted[name])
    found["divergence"] = found["difficulty"] = found["depth"]
    page = _page(run, found["ranking"], seed)
    sections = [_section(name, found[name], page) for name in _TITLES if name in found]
    sections.append(Section("skipped", _TITLES["skipped"], _LEADS["skipped"], (), (_skipped(run),)))
    told = (None if isinstance(found[name], str) else found[name] for name in ("ranking", "paths", "contexts"))
    return summarise(*told), sections


def _page(run: Run, ranking: Ranking | str, seed: int) -> _Page:
    pairs = pairs_of(run)
    if not isinstance(ranking, str):
        pairs = [*zip(ranking.frame["teacher"], ranking.frame["objective"], strict=True)]
    taught = [(teacher, objective) for teacher, objective in pairs if teacher != REWARDS] or pairs
    objective = taught[0][1] if taught else run.identity["objectives"][0]
    return _Page(run, seed, objective, tuple(teacher for teacher, o in taught if o == objective))


def _or_reason(finding: Callable[[], _F]) -> _F | str:
    """The finding, or why the run cannot give it."""
    try:
        return finding()
    except GradalignError as fault:
        return str(fault)


def _section(id: str, finding: Shown | str, page: _Page) -> Section:
    if isinstance(finding, str):
        return Section(id, _TITLES[id], _LEADS[id], remarks=(Remark(f"Not available for this run: {finding}.", "warning"),))
    drawn, sheets = _CONTENTS.get(id, _plain)(finding, page)
    return Section(id, _TITLES[id], _LEADS[id], tuple(drawn), tuple(sheets))


_TITLES = {
    "ranking": "Ranking",
    "configurations": "Training configurations",
    "compare": "Two runs",
    "paths": "Correct and incorrect paths",
    "depth": "Depth",
    "divergence": "Divergence",
    "difficulty": "Difficulty",
    "paced": "Pass rates",
    "contexts": "Contexts",
    "skipped": "What was left out",
}
_LEADS = {
    "ranking": "Which teacher and objective would a training step do best with?",
    "configurations": "The training configurations that were given, on the same rows.",
    "compare": "The same teachers and objectives in another run.",
    "paths": "Where rollouts go wrong, does the teacher push harder toward success?",
    "depth": "How does alignment change along a rollout?",
    "divergence": "Does the distance between teacher and student foretell alignment?",
    "difficulty": "Are hard questions aligned otherwise than easy ones?",
    "paced": "How clear is the gradient at each pass rate, and which question weights follow?",
    "contexts": "What does each context do to the student's own answers?",
    "skipped": "Unknown is not zero.",
}
_Content = tuple[Sequence[Picture], Sequence[Sheet]]


def _plain(found: Shown, page: _Page) -> _Content:
    return (), found.sheets()


def _ranking(found: Ranking, page: _Page) -> _Content:
    frame = found.frame.copy()
    names = [f"{row['teacher']}, {row['objective']}" for row in frame.to_dict("records")]
    scores = [name for name in (*FORETOLD, "transfer_drive", "drive", "gain") if frame[name].notna().any()]
    for name in scores:
        frame[[name, f"{name}_low", f"{name}_high"]] *= SCORE_SCALE.get(name, 1.0)
    drawn = figures.ranking_figure(frame, [(name, SCORE_HEADS[name]) for name in scores], names)
    return [(drawn, "Scores with 95% intervals over questions, best first")], found.sheets()


def _paths(found: PathComparison, page: _Page) -> _Content:
    return [(figures.paths_figure(found.frame), "Mean cosine on both kinds of path, and the paired difference")], found.sheets()


def _depth(found: AlignmentFindings, page: _Page) -> _Content:
    return [_profile(found, by, page) for by in ("window", "depth")], [found.profile_sheet(by) for by in ("window", "depth")]


def _difficulty(found: AlignmentFindings, page: _Page) -> _Content:
    known = [by for by in ("difficulty", "pass_rate") if (found.profiles["by"] == by).any()]
    return [_profile(found, by, page) for by in known[:1]], [found.profile_sheet(by) for by in known]


def _profile(found: AlignmentFindings, by: str, page: _Page) -> Picture:
    rows = found.profiles[(found.profiles["by"] == by) & (found.profiles["objective"] == page.objective)]
    teachers, more = page.drawn(rows[rows["nodes"] > 0])
    return figures.profile_figure(rows, teachers, PROFILES[by], by), f"Mean cosine by {PROFILES[by]}, {page.objective}{more}"


def _divergence(found: AlignmentFindings, page: _Page) -> _Content:
    rows = node_rows(page.run, "visited")
    known = rows["informative"].astype(bool) & rows["cos"].notna() & rows["reverse_kl"].notna()
    rows = rows[known & (rows["objective"] == page.objective)]
    teachers, more = page.drawn(rows)
    rows = rows[rows["teacher"].isin(teachers)]
    if len(rows) > _POINTS:
        rows = rows.iloc[np.sort(np.random.default_rng(page.seed).choice(len(rows), _POINTS, replace=False))]
    sheets = [*found.association_sheets(), found.selective_sheet()]
    if rows.empty:
        return [], sheets
    drawn = figures.scatter_figure(rows, teachers, "reverse_kl", "KL(student || teacher), nats")
    return [(drawn, f"{len(rows):,} informative nodes under {page.objective}{more}")], sheets


def _paced(found: PacedDiagnostics, page: _Page) -> _Content:
    first = found.curve.iloc[0][["teacher", "objective", "space"]]
    curve = found.curve.loc[(found.curve[["teacher", "objective", "space"]] == first).all(axis=1)]
    what = f"Signal to noise of the questions' steps over their pass rate, {first['teacher']}, {first['objective']}"
    return [(figures.clarity_figure(curve), what)], found.sheets()


def _contexts(found: ContextScreening, page: _Page) -> _Content:
    sampled = found.frame["accuracy"].notna().sum() > 1  # the student alone is always known
    drawn = (
        [(figures.accuracy_figure(found.by_difficulty), "Accuracy of rollouts under each context, by difficulty")]
        if sampled
        else []
    )
    return drawn, found.sheets() if sampled else found.sheets()[:1]


_CONTENTS: dict[str, Callable[[Any, _Page], _Content]] = {
    "ranking": _ranking,
    "paths": _paths,
    "depth": _depth,
    "divergence": _divergence,
    "difficulty": _difficulty,
    "paced": _paced,
    "contexts": _contexts,
}


def _skipped(run: Run) -> Sheet:
    rows: pd.DataFrame = run.frame("skipped").fillna({"teacher": "every teacher"})
    counted = rows.groupby(["teacher", "reason"], sort=True).size()
    cells = tuple((teacher, reason, f"{count:,}") for (teacher, reason), count in counted.items())
    if not cells:
        return Sheet("Nothing was left out")
    heads = (Head("teacher", number=False), Head("reason", number=False), Head("questions"))
    return Sheet("Questions left out, by teacher and reason", heads, cells)
