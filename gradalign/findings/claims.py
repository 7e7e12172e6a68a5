"""Are the diagnostic paper's findings seen in these runs? Each is one number a run with its interval, and a verdict over all of them.

The findings are those of *Unmasking On-Policy Distillation* (arXiv 2605.10889): two students, contexts of their own, external teachers,
several question sets. A finding is seen where the interval of the mean over settings lies on the claimed side, not seen where it lies on
the other, and undecided where it holds both.
"""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportReturnType=false

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from gradalign.findings.overview import AlignmentFindings, alignment_findings
from gradalign.findings.paths import compare_paths
from gradalign.findings.ranking import paired_difference
from gradalign.findings.tokens import pairs_of
from gradalign.inference import influence_interval
from gradalign.sheets import Head, Remark, Sheet, Shown, interval, number
from gradalign.store import Run
from gradalign.types import GradalignError

_HALF = (0.35, 0.65)  # what `about half` is taken for
_DEMO, _BOTH, _SUMMARY = "ctx:correct_demo", "ctx:correct_wrong_demo", "ctx:summary"


@dataclass(frozen=True)
class Estimate:
    """A number in one setting with its 95% interval over questions; `questions` is the set that they are of."""

    questions: str
    setting: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class PaperClaims(Shown):
    """Findings of the paper in these runs.

    `frame`: finding, claim, `side` it claims (above 0, below 0, about half), settings, of how many the interval agrees (`agree`) or
    disagrees (`disagree`), the mean over settings with `_low` and `_high`, and the verdict: seen, not seen, undecided, or not tested where
    no run can tell. `settings`: finding, questions, setting, value, low, high.
    """

    frame: pd.DataFrame
    settings: pd.DataFrame

    def sheets(self) -> list[Sheet]:
        """One row a finding."""
        heads = (Head("finding of the paper", number=False), Head("side", number=False), Head("mean over settings [95%]", strong=True),
                 Head("settings: agree, disagree, all"), Head("here", number=False))  # fmt: skip
        rows = [
            (row["claim"], row["side"], f"{number(row['mean'], '+.3f')} {interval(row['mean_low'], row['mean_high'], _three)}",
             f"{row['agree']}, {row['disagree']}, {row['settings']}", row["verdict"])
            for row in self.frame.to_dict("records")
        ]  # fmt: skip
        said = (
            "A setting is a run, and where the finding speaks of them a teacher or a difficulty. Errors on the same questions are taken to "
            "be as one, those of different question sets to be independent."
        )
        return [Sheet("Findings of arXiv 2605.10889, here", heads, tuple(rows), (Remark(said, "note"),))]


def _three(value: float) -> str:
    return number(value, "+.3f")


@dataclass(frozen=True, eq=False)
class _Runs:
    """Runs by (student, question set), which student is the smaller, and what was computed of them."""

    runs: Mapping[tuple[str, str], Run]
    smaller: str
    larger: str
    objective: str
    found: Mapping[tuple[str, str], AlignmentFindings]

    def of(self, student: str | None = None) -> Iterator[tuple[str, str, Run]]:
        """Question set, name and run, of one student or of both."""
        for (who, where), run in self.runs.items():
            if student in (None, who):
                yield where, f"{who} on {where}", run


def paper_claims(
    runs: Mapping[tuple[str, str], Run],
    smaller: str,
    larger: str,
    objective: str = "reverse_kl",
    draws: int = 1000,
    seed: int = 0,
) -> PaperClaims:
    """Test the paper's findings on runs by (student, question set), of a `smaller` and a `larger` student, with one objective."""
    for student in (smaller, larger):
        if not any(who == student for who, _ in runs):
            raise GradalignError(f"no run of student {student!r} is given; give runs by (student, question set)")
    seen = _Runs(
        runs, smaller, larger, objective, {key: alignment_findings(run, draws=draws, seed=seed) for key, run in runs.items()}
    )
    rows, settings = [], []
    for name, claim in _CLAIMS.items():
        estimates = [each for each in claim.estimate(seen) if np.isfinite([each.value, each.low, each.high]).all()]
        rows.append({"finding": name, "claim": claim.words, "side": claim.side} | _verdict(estimates, claim.side, claim.every))
        settings += [{"finding": name, **vars(each)} for each in estimates]
    return PaperClaims(
        pd.DataFrame(rows), pd.DataFrame(settings, columns=["finding", "questions", "setting", "value", "low", "high"])
    )


def _verdict(estimates: Sequence[Estimate], side: str, every: bool = False) -> dict:
    """By the interval of the mean over settings; a finding about `every` setting is not seen where one disagrees."""

    def agrees(low: float, high: float) -> str:
        inside = {"above 0": low > 0, "below 0": high < 0, "about half": _HALF[0] <= low and high <= _HALF[1]}[side]
        outside = {"above 0": high < 0, "below 0": low > 0, "about half": high < _HALF[0] or low > _HALF[1]}[side]
        return "seen" if inside else "not seen" if outside else "undecided"

    if not estimates:
        nothing = {"mean": np.nan, "mean_low": np.nan, "mean_high": np.nan}
        return {"settings": 0, "agree": 0, "disagree": 0, **nothing, "verdict": "not tested"}
    single = [agrees(each.low, each.high) for each in estimates]
    mean = float(np.mean([each.value for each in estimates]))
    half: dict[str, float] = {}
    for each in estimates:  # errors on the same questions add up, those of different sets add up in squares
        half[each.questions] = half.get(each.questions, 0.0) + (each.high - each.low) / 2
    reach = float(np.sqrt(np.sum(np.square([*half.values()])))) / len(estimates)
    low, high = mean - reach, mean + reach
    return {
        "settings": len(estimates), "agree": single.count("seen"), "disagree": single.count("not seen"), "mean": mean, "mean_low": low,
        "mean_high": high, "verdict": "not seen" if every and "not seen" in single else agrees(low, high),
    }  # fmt: skip


def _paths(seen: _Runs) -> Iterator[Estimate]:
    for where, name, run in seen.of():
        frame = compare_paths(run).frame
        rows = frame[(frame["cosine"] == "weighted") & (frame["objective"] == seen.objective)]
        for row in rows.to_dict("records"):
            yield Estimate(where, f"{name}, {row['teacher']}", row["paired"], row["paired_low"], row["paired_high"])


def _between(seen: _Runs, one: str, other: str, student: str | None = None, numeric: bool = True) -> Iterator[Estimate]:
    """Weighted cosine of one teacher less that of another, in every run that has both; `other` may be any external teacher, `model:`.

    The paper speaks of BoolQ and MMLU in places: without `numeric` sets of sums are left out.
    """
    sets = [where for where, _, run in seen.of() if numeric or run.frame("questions", ["kind"])["kind"].iloc[0] != "numeric"]
    for where, name, run in seen.of(student):
        teachers = [teacher for teacher, objective in pairs_of(run) if objective == seen.objective]
        rivals = [t for t in teachers if t == other or (other == "model:" and t.startswith(other))]
        if one not in teachers or where not in sets:
            continue
        for rival in rivals:
            pair = ((one, seen.objective), (rival, seen.objective))
            yield Estimate(where, f"{name}, {rival}", *paired_difference(run, *pair, by="weighted_cosine"))


def _lifts(seen: _Runs) -> Iterator[Estimate]:
    """How much a correct demonstration raises the student's accuracy, by difficulty."""
    for where, name, run in seen.of():
        success, questions = (
            _success(run, _DEMO),
            run.frame("questions", ["question", "pass_rate", "difficulty"]).set_index("question"),
        )
        if success is None:
            continue
        lift = success - questions.loc[success.index, "pass_rate"]
        difficulty = questions.loc[success.index, "difficulty"].fillna("not stated")
        for group, values in lift.groupby(difficulty):
            yield _mean(where, f"{name}, difficulty {group}", values.to_numpy(dtype=np.float64))


def _lowered(seen: _Runs) -> Iterator[Estimate]:
    """What adding a wrong demonstration does to that accuracy."""
    for where, name, run in seen.of():
        alone, both = _success(run, _DEMO), _success(run, _BOTH)
        if alone is not None and both is not None:
            yield _mean(where, name, (both - alone.reindex(both.index)).dropna().to_numpy(dtype=np.float64))


def _success(run: Run, teacher: str) -> pd.Series | None:
    rows = run.frame("rollouts", ["question", "reward"], (pc.field("purpose") == "teacher") & (pc.field("source") == teacher))
    return None if rows.empty else pd.Series(rows["reward"].to_numpy(), index=rows["question"]).groupby(level=0).mean()


def _mean(questions: str, setting: str, values: np.ndarray) -> Estimate:
    mean = float(values.mean()) if len(values) else np.nan
    low, high = influence_interval(np.array([mean]), (values - mean)[None])
    return Estimate(questions, setting, mean, float(low[0]), float(high[0]))


def _correlations(quantity: str) -> Callable[[_Runs], Iterator[Estimate]]:
    def estimate(seen: _Runs) -> Iterator[Estimate]:
        for (who, where), found in seen.found.items():
            frame = found.associations
            rows = frame[(frame["quantity"] == quantity) & (frame["objective"] == seen.objective)]
            for row in rows.to_dict("records"):
                yield Estimate(
                    where, f"{who} on {where}, {row['teacher']}", row["pooled"], row["pooled_low"], row["pooled_high"]
                )

    return estimate


def _clearer_for_the_smaller(seen: _Runs) -> Iterator[Estimate]:
    """Correlation with depth of the smaller student less that of the larger, where both have the teacher."""
    depth = {each.setting: each for each in _correlations("depth_share")(seen)}
    for setting, one in depth.items():
        other = depth.get(setting.replace(f"{seen.smaller} on ", f"{seen.larger} on ", 1))
        if setting.startswith(f"{seen.smaller} on ") and other is not None:
            half = np.hypot(one.high - one.low, other.high - other.low) / 2
            difference = one.value - other.value
            yield Estimate(one.questions, setting, difference, difference - half, difference + half)


def _kept(seen: _Runs) -> Iterator[Estimate]:
    for (who, where), found in seen.found.items():
        for row in found.selective[found.selective["objective"] == seen.objective].to_dict("records"):
            yield Estimate(where, f"{who} on {where}, {row['teacher']}", row["kept"], row["kept_low"], row["kept_high"])


def _untested(seen: _Runs) -> Iterator[Estimate]:
    """Nothing: tokens chosen by the sign of what is then summed have a larger sum whatever the truth is."""
    yield from ()


@dataclass(frozen=True)
class _Claim:
    """A finding in words, the side that it claims, where its numbers come from, and whether it speaks of every setting."""

    words: str
    side: str
    estimate: Callable[[_Runs], Iterator[Estimate]]
    every: bool = False


_CLAIMS = {
    "paths": _Claim("Alignment is higher on incorrect than on correct paths", "above 0", _paths),
    "self, smaller": _Claim(
        "For the smaller student its own context aligns better than an external teacher",
        "above 0",
        lambda seen: _between(seen, _DEMO, "model:", seen.smaller),
    ),
    "self, larger": _Claim(
        "For the larger student an external teacher aligns better",
        "below 0",
        lambda seen: _between(seen, _DEMO, "model:", seen.larger),
    ),
    "correct only": _Claim(
        "Correct demonstrations alone beat correct and wrong ones (sets other than sums)",
        "above 0",
        lambda seen: _between(seen, _DEMO, _BOTH, numeric=False),
    ),
    "summaries": _Claim(
        "Summaries help the larger student", "above 0", lambda seen: _between(seen, _SUMMARY, _DEMO, seen.larger)
    ),
    "accuracy": _Claim("A correct solution in the context raises accuracy at every difficulty", "above 0", _lifts, every=True),
    "accuracy, wrong": _Claim("Adding a wrong one lowers it again", "below 0", _lowered),
    "reverse KL": _Claim("KL(student || teacher) goes with alignment", "above 0", _correlations("reverse_kl")),
    "JSD": _Claim("Jensen-Shannon divergence goes with alignment", "above 0", _correlations("jsd")),
    "L2": _Claim("L2 distance goes with alignment", "above 0", _correlations("l2")),
    "similarity": _Claim("Cosine similarity goes against it", "below 0", _correlations("similarity")),
    "depth": _Claim("Alignment grows with normalised depth", "above 0", _correlations("depth_share")),
    "depth, smaller": _Claim("More clearly for the smaller student", "above 0", _clearer_for_the_smaller),
    "selection, share": _Claim(
        "About half of the tokens are positively aligned (as noise alone would have it)", "about half", _kept
    ),
    "selection, signal": _Claim(
        "Keeping only these raises the gain per step (choosing by its own numbers must)", "above 0", _untested
    ),
}
