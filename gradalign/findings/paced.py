"""PACED's diagnostics: how clear the gradient is at each pass rate, and which question weights that asks for. From stored steps."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from gradalign.configurations import QuestionWeighting
from gradalign.findings.standing import standing_of
from gradalign.findings.steps import steps_themselves
from gradalign.inference import bootstrap_counts, percentile_interval
from gradalign.pacing import clarity_curves, even_bins, fit_exponents
from gradalign.sheets import Head, Remark, Sheet, Shown, interval, number
from gradalign.store import Run
from gradalign.types import GradalignError

_DASH = "A dash: fewer than four questions in the bin, or fewer than four such bins to fit to. The whole table has every curve."
_SOME = "Steps are those of {:,} of the {:,} questions, taken at random."
_MOST = 2048  # questions whose steps are compared with each other
SPACES: tuple[Literal["head", "logits"], ...] = ("head", "logits")


@dataclass(frozen=True, eq=False)
class PacedDiagnostics(Shown):
    """For every teacher and objective: the signal-to-noise ratio of questions' steps over their pass rate, and weights fitted to it.

    `curve`: teacher, objective, space (head: the output layer's parameters; logits: summed over tokens), low and high end of the bin,
    questions, pass_rate, snr with `_low` and `_high`. `fit`: teacher, objective, space, alpha and beta of p^alpha (1 - p)^beta with their
    intervals, missing where fewer than four bins hold four questions. `weights`: pass_rate and the default weight, p (1 - p), by question.
    """

    curve: pd.DataFrame
    fit: pd.DataFrame
    weights: pd.DataFrame

    def sheets(self) -> list[Sheet]:
        """The fitted exponents of every teacher and objective beside the default, and the curve of the first of them."""
        named = [Head(text, number=False) for text in ("teacher", "objective", "in")]
        rows = [
            (row["teacher"], row["objective"], row["space"], *(_with_interval(row, name, ".2f") for name in ("alpha", "beta")))
            for row in self.fit.to_dict("records")
        ]
        fitted = Sheet(
            "Question weights p^alpha (1 - p)^beta that follow the gradient's clarity",
            (*named, Head("alpha [95%]"), Head("beta [95%]")),
            (*rows, ("default", "", "", "1.00", "1.00")),
        )
        first = self.curve.iloc[0][["teacher", "objective", "space"]]
        curve = self.curve.loc[(self.curve[["teacher", "objective", "space"]] == first).all(axis=1)]
        heads = tuple(Head(text) for text in ("pass rate", "questions", "signal to noise [95%]", "default weight"))
        drawn = tuple(
            (f"{row['low']:.2f} to {row['high']:.2f}", f"{row['questions']}", _with_interval(row, "snr", ".3f"),
             number(row["pass_rate"] * (1 - row["pass_rate"]), ".3f"))
            for row in curve.to_dict("records")
        )  # fmt: skip
        title = f"{first['teacher']}, {first['objective']}, output layer"
        looked_at, known = curve["questions"].sum(), len(self.weights)
        some = [Remark(_SOME.format(looked_at, known), "note")] if looked_at < known else []
        return [fitted, Sheet(title, heads, drawn, (Remark(_DASH, "note"), *some))]


def paced_diagnostics(run: Run, bins: int = 6, draws: int = 300, seed: int = 0) -> PacedDiagnostics:
    """Compute the diagnostics of a run, in bins of about equally many questions; intervals come from a bootstrap over questions.

    The curves of a run of more than 2,048 questions are those of so many of them, taken at random with the `seed`.
    """
    if bins < 4:
        raise GradalignError(f"bins is {bins}; it must be at least 4, or there is nothing to fit two exponents to")
    standing = standing_of(run.frame("scores"), run.identity["teachers"], run.identity["objectives"])
    if not standing.questions:
        raise GradalignError("the teachers share no question; the run's `skipped` table says why")
    if not run.table("steps", ["question"]).num_rows:
        raise GradalignError("this run kept no steps (its nodes were taken outright); score again with --node-selection pps")
    questions = run.frame("questions").set_index("question")
    pass_rate = questions.loc[list(standing.questions), "pass_rate"].to_numpy(dtype=np.float64)
    at = np.sort(np.random.default_rng(seed).permutation(len(pass_rate))[:_MOST])
    looked_at, rates = [standing.questions[q] for q in at], pass_rate[at]
    edges = even_bins(rates, bins)
    if len(edges) < 2:
        raise GradalignError(f"every question has the pass rate {pass_rate[0]:.2f}: score questions of more kinds")
    counts = np.concatenate([np.ones((1, len(at))), bootstrap_counts(len(at), draws, seed)])
    keys = [(*key, "all") for key in standing.keys]
    curves, fits = [], []
    for space in SPACES:
        for (teacher, objective), steps in zip(standing.keys, steps_themselves(run, keys, looked_at, space), strict=True):
            whole, *drawn = clarity_curves(steps, rates, edges, counts)
            low, high = percentile_interval(np.stack([curve.ratio_B for curve in drawn]), len(at))
            exponents = fit_exponents(drawn)
            alpha, beta = fit_exponents([whole])[0]
            below, above = percentile_interval(exponents, len(at))
            named = {"teacher": teacher, "objective": objective, "space": space}
            curves.append(pd.DataFrame({
                **named, "low": whole.low_B, "high": whole.high_B, "questions": whole.count_B.astype(int),
                "pass_rate": whole.pass_rate_B, "snr": whole.ratio_B, "snr_low": low, "snr_high": high,
            }))  # fmt: skip
            fits.append({
                **named, "alpha": alpha, "alpha_low": below[0], "alpha_high": above[0],
                "beta": beta, "beta_low": below[1], "beta_high": above[1],
            })  # fmt: skip
    weights = pd.DataFrame({"question": standing.questions, "pass_rate": pass_rate})
    weights["default"] = QuestionWeighting("paced").weights(pass_rate)
    return PacedDiagnostics(pd.concat(curves, ignore_index=True), pd.DataFrame(fits), weights)


def _with_interval(row: dict, name: str, form: str) -> str:
    if np.isnan(row[name]):
        return "-"
    return f"{row[name]:{form}} {interval(row[f'{name}_low'], row[f'{name}_high'], lambda value: number(value, form))}"
