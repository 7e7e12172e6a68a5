"""How often tests of paths find a difference where there is none: 2,000 simulated runs, by question and node by node.

In every run correct and incorrect paths have the same law of alignment, but nodes of one question have something in common, nodes of
one path of it more, questions differ in size and in how many of their rollouts go wrong, cosines are skewed, and nodes count by
weights over four orders of magnitude. A test at level 0.05 should find a difference in 5% of them. Exits 1 if a test by
question is off by more than 1.5 points (at full size). `SMALL=1` for the size that CI runs.
"""

import sys

import numpy as np
import pandas as pd
from trials import SMALL, report, spread_over_cores

from gradalign.findings.paths import compare_rows

RUNS = 100 if SMALL else 2000
LEVEL = 0.05
SETTINGS = {"40 questions": 40, "150 questions": 150}
TESTS = (
    "mean, signs",
    "weighted, signs",
    "mean, interval",
    "weighted, interval",
    "pooled, interval",
    "Welch, nodes",
    "ranks, nodes",
)
_BY_QUESTION = 5


def simulate(seed: int, questions: int) -> pd.DataFrame:
    """Rows of scored nodes in which paths do not matter."""
    rng = np.random.default_rng(seed)
    frames = []
    for q in range(questions):
        rate = rng.beta(1.5, 1.5)
        size = int(rng.integers(6, 60))
        kind = rng.random(size)
        wrong = np.where(kind < 0.2, 1 - rate, (rng.random(size) > rate).astype(float))  # a fifth of the nodes lie on both
        own, path = rng.standard_normal(), rng.standard_normal(2)
        level = 0.6 * own + 0.6 * np.where(wrong > 0.5, path[1], path[0])
        cosine = np.tanh(level + rng.gumbel(0, 0.8, size))
        g, d = np.exp(rng.normal(-4, 1, size)), np.exp(rng.normal(-2, 1, size))
        frames.append(pd.DataFrame({
            "question": f"q{q:03d}", "wrong": wrong, "weight": np.exp(rng.normal(0, 1.5, size)), "informative": rng.random(size) < 0.7,
            "cos": cosine, "cos_dot": cosine * g * d, "cos_d2": d**2, "g_norm2": g**2 * rng.uniform(0.2, 1, size), "g_norm2_raw": g**2,
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True).assign(teacher="t", objective="o")


def one_run(job: tuple[int, int]) -> dict:
    """Which tests find a difference at the level."""
    seed, questions = job
    frame, _ = compare_rows(simulate(seed, questions), draws=1000, flips=2000, seed=seed)
    frame = frame.set_index("cosine")
    apart = (frame["difference_low"] > 0) | (frame["difference_high"] < 0)
    said = [*(frame["p"][["mean", "weighted"]] < LEVEL), *apart[["mean", "weighted", "pooled"]]]
    said += [frame["welch_p"]["mean"] < LEVEL, frame["mannwhitney_p"]["mean"] < LEVEL]
    return {"questions": questions, **{name: bool(found) for name, found in zip(TESTS, said, strict=True)}}


def main() -> None:
    rows, stored, off = [], {}, []
    for name, questions in SETTINGS.items():
        found = pd.DataFrame(spread_over_cores(one_run, [(seed, questions) for seed in range(RUNS)], name))
        rates = {test: float(found[test].mean()) for test in TESTS}
        rows.append([name, *(f"{100 * rate:.1f}%" for rate in rates.values())])
        stored[name] = rates
        off += [f"{test} with {name}: {rates[test]:.3f}" for test in TESTS[:_BY_QUESTION] if abs(rates[test] - LEVEL) > 0.015]
    title = f"Runs in which a test finds a difference where there is none, of {RUNS:,}"
    report("null_paths", title, ["", *TESTS], rows, {"runs": RUNS, "level": LEVEL, "rates": stored})
    if off and not SMALL:
        sys.exit("off by more than 1.5 points: " + "; ".join(off))


if __name__ == "__main__":
    main()
