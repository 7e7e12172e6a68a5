"""PACED's diagnostics: how clear the gradient is at each pass rate, and which question weights that asks for. From stored steps."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from gradalign.configurations import QuestionWeighting
from gradalign.findings.standing import standing_of
from gradalign.findings.steps import steps_of
from gradalign.inference import bootstrap_counts, percentile_interval
from gradalign.pacing import clarity_curve, even_bins, fit_exponents
from gradalign.store import Run
from gradalign.types import GradalignError

SPACES: tuple[Literal["head", "logits"], ...] = ("head", "logits")


@dataclass(frozen=True, eq=False)
class PacedDiagnostics:
    """For every teacher and objective: the signal-to-noise ratio of questions' steps over their pass rate, and weights fitted to it.

    `curve`: teacher, objective, space (head: the output layer's parameters; logits: summed over tokens), low and high end of the bin,
    questions, pass_rate, snr with `_low` and `_high`. `fit`: teacher, objective, space, alpha and beta of p^alpha (1 - p)^beta with their
    intervals, missing where fewer than four bins hold four questions. `weights`: pass_rate and the default weight, p (1 - p), by question.
    """

    curve: pd.DataFrame
    fit: pd.DataFrame
    weights: pd.DataFrame


def paced_diagnostics(run: Run, bins: int = 6, draws: int = 300, seed: int = 0) -> PacedDiagnostics:
    """Compute the diagnostics of a run, in bins of about equally many questions; intervals come from a bootstrap over questions."""
    if bins < 4:
        raise GradalignError(f"bins is {bins}; it must be at least 4, or there is nothing to fit two exponents to")
    standing = standing_of(run.frame("scores"), run.identity["teachers"], run.identity["objectives"])
    if not standing.questions:
        raise GradalignError("the teachers share no question; the run's `skipped` table says why")
    questions = run.frame("questions").set_index("question")
    pass_rate = questions.loc[list(standing.questions), "pass_rate"].to_numpy(dtype=np.float64)
    edges = even_bins(pass_rate, bins)
    if len(edges) < 2:
        raise GradalignError(f"every question has the pass rate {pass_rate[0]:.2f}: score questions of more kinds")
    counts = bootstrap_counts(len(pass_rate), draws, seed).astype(np.float64)
    curves, fits = [], []
    for space in SPACES:
        steps = steps_of(run, standing.keys, standing.questions, space)
        if steps is None:
            raise GradalignError(
                "this run kept no steps (its nodes were taken outright); score again with --node-selection pps"
            )
        for (teacher, objective), among_QQ in zip(standing.keys, steps.among_MQQ, strict=True):
            whole = clarity_curve(among_QQ, pass_rate, edges)
            drawn = [clarity_curve(among_QQ, pass_rate, edges, count) for count in counts]
            low, high = percentile_interval(np.stack([curve.ratio_B for curve in drawn]))
            exponents = np.array([fit_exponents(curve) for curve in drawn])
            alpha, beta = fit_exponents(whole)
            below, above = percentile_interval(exponents)
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
