"""Does the ranking from 100 targeted rollouts a question agree with that from 20,000? On the built-in student and questions.

Twelve pairs of teacher and objective on `builtin:arithmetic`. The two runs share questions but no rollout.
`SMALL=1` for the size that CI runs.
"""

import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from scipy.stats import kendalltau
from trials import SMALL, report

import gradalign
from gradalign.store import Run

TEACHERS = ["ctx:correct_demo", "ctx:correct_wrong_demo", "ctx:wrong_demo", "ctx:answer"]
OBJECTIVES = ["reverse_kl", "forward_kl", "jsd:0.5"]
LIMIT = 8 if SMALL else 24
FEW = {"rollouts": 64, "budget": 100}
MANY = {"rollouts": 200, "budget": 400} if SMALL else {"rollouts": 2000, "budget": 20_000}


def scored(folder: Path, seed: int, **settings) -> tuple[Run, float]:
    """A run on the built-in arithmetic questions, and its seconds."""
    began = time.perf_counter()
    run = gradalign.score("builtin:arithmetic", teachers=TEACHERS, objectives=OBJECTIVES, limit=LIMIT, seed=seed,
                          demonstrations=16, part_size=2, out=folder, **settings)  # fmt: skip
    return run, time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (few, few_time), (many, many_time) = scored(Path(folder) / "few", 1, **FEW), scored(Path(folder) / "many", 2, **MANY)
        frames = [gradalign.rank(run).frame.set_index(["teacher", "objective"]) for run in (few, many)]
        tokens = [int(run.questions.sampled_tokens.sum()) for run in (few, many)]
        shared = [gradalign.rank(run).questions for run in (few, many)]
    both = pd.concat(frames, axis=1, keys=["few", "many"]).sort_values(("many", "drive"), ascending=False)
    tau = {by: float(kendalltau(both["few"][by], both["many"][by]).statistic) for by in ("drive", "gain", "teacher_advantage")}
    rows = [
        [
            *key,
            *(f"{1e3 * row[(run, 'drive')]:+.3f}" for run in ("few", "many")),
            *(f"{row[(run, 'gain')]:+.4f}" for run in ("few", "many")),
        ]
        for key, row in both.iterrows()
    ]
    rows.append(["Kendall's tau", "", f"{tau['drive']:.3f}", "", f"{tau['gain']:.3f}", ""])
    title = f"{FEW['budget']} against {MANY['budget']:,} targeted rollouts a question, {LIMIT} questions"
    stored = {
        "kendall": tau, "few": FEW, "many": MANY, "questions": LIMIT, "shared_questions": shared, "tokens": tokens,
        "seconds": [round(few_time, 1), round(many_time, 1)],
        "rows": [{"teacher": k[0], "objective": k[1], "drive": [r[("few", "drive")], r[("many", "drive")]],
                  "gain": [r[("few", "gain")], r[("many", "gain")]]} for k, r in both.iterrows()],
    }  # fmt: skip
    report("few_rollouts", title, ["teacher", "objective", "drive ·10³ few", "many", "gain few", "many"], rows, stored)
    print(f"tokens {tokens[0]:,} against {tokens[1]:,}; {few_time:.0f} s against {many_time:.0f} s")
    if tau["drive"] < (0.7 if SMALL else 0.9):
        sys.exit("the two rankings disagree")


if __name__ == "__main__":
    main()
