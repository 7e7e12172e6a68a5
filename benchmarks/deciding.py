"""How often does `--decide` name a wrong winner? Whole runs, stopping early, on families with known truth, ties among them.

A winner is wrong if it is not the one best teacher in the population that the questions are drawn from; where two teachers tie
for best, any winner is wrong. `SMALL=1` for the size that CI runs.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from trials import SMALL, Quality, draw_world, report, spread_over_cores

from gradalign.api import run_score
from gradalign.pipeline import Budget, Effort

FAMILIES = ("easy", "hard", "decisive", "tied")
TRUTHS = {
    "one clearly best": (Quality(4.0), Quality(1.0), Quality(0.5), Quality(-1.0)),
    "close": (Quality(2.0), Quality(1.7), Quality(1.0), Quality(-1.0)),
    "two tie for best": (Quality(2.0), Quality(2.0), Quality(1.0), Quality(-1.0)),
}
REPETITIONS = 2 if SMALL else 42
QUESTIONS = 64 if SMALL else 128
CONFIDENCE = 0.95


def trial(job: tuple[str, str, int]) -> dict:
    family, truth, seed = job
    world = draw_world(family, QUESTIONS, TRUTHS[truth], 7000 + seed)
    config = world.config(seed, rollouts=8)
    with tempfile.TemporaryDirectory() as folder:
        run = run_score(
            config, Path(folder) / "run", cast=world.cast(), questions=world.student.questions(),
            effort=Effort(Budget(16), decide=CONFIDENCE),
        )  # fmt: skip
        outcome = run.outcome
    winner = outcome["winner"]
    right = winner is not None and winner[0] == "model:t0" and truth != "two tie for best"
    return {"family": family, "truth": truth, "decided": winner is not None, "right": right,
            "questions": outcome["questions"], "tokens": outcome["tokens"]}  # fmt: skip


def main() -> None:
    jobs = [(family, truth, seed) for family in FAMILIES for truth in TRUTHS for seed in range(REPETITIONS)]
    trials = spread_over_cores(trial, jobs, "runs that may stop")
    rows, stored = [], {"repetitions": len(trials), "confidence": CONFIDENCE, "questions": QUESTIONS, "rows": []}
    for family in FAMILIES:
        for truth in TRUTHS:
            mine = [t for t in trials if (t["family"], t["truth"]) == (family, truth)]
            wrong = sum(t["decided"] and not t["right"] for t in mine)
            decided = sum(t["decided"] for t in mine)
            questions, tokens = (float(np.mean([t[name] for t in mine])) for name in ("questions", "tokens"))
            rows.append(
                [
                    f"{family}, {truth}",
                    f"{len(mine)}",
                    f"{decided}",
                    f"{wrong}",
                    f"{questions:.0f} of {QUESTIONS}",
                    f"{tokens:,.0f}",
                ]
            )
            stored["rows"].append({"family": family, "truth": truth, "runs": len(mine), "decided": decided, "wrong": wrong,
                                   "questions": questions, "tokens": tokens})  # fmt: skip
    wrong = sum(row["wrong"] for row in stored["rows"])
    rows.append(["all", f"{len(trials)}", f"{sum(r['decided'] for r in stored['rows'])}", f"{wrong}", "", ""])
    stored["wrong_share"] = wrong / len(trials)
    report("deciding", f"Winners named by --decide at confidence {CONFIDENCE:g}",
           ["family, truth", "runs", "decided", "wrong", "questions", "tokens"], rows, stored)  # fmt: skip
    if wrong > 0.05 * len(trials) + (2 if SMALL else 0):
        sys.exit("--decide names a wrong winner too often")


if __name__ == "__main__":
    main()
