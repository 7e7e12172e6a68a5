"""PACED on a built-in student: the clarity of its gradients over pass rates, the question weights fitted to it, and two stages against one.

On each question set, `builtin:small` teaches itself with a correct demonstration. From the stored steps come the exponents of
p^alpha (1 - p)^beta with their intervals (in the output layer's parameters and in the logits), beside PACED's default of 1 and 1; and
forward KL followed by reverse KL, at the policy after a step in the logits, is compared with either alone, paired over questions.
`SMALL=1` for the size that CI runs.
"""

import sys
import tempfile
import time
from pathlib import Path

from trials import SMALL, report

import gradalign
from gradalign.configurations import Configuration, QuestionWeighting
from gradalign.findings import paced_diagnostics, rank_configurations
from gradalign.store import Run

SETS = ["builtin:arithmetic:train", "builtin:boolean:train", "builtin:choice:train"]
TEACHER = "ctx:correct_demo"
LIMIT = 32 if SMALL else 600
STEP = 1.0
SCORES = ("transfer_drive", "transfer", "drive", "gain")
PACED = QuestionWeighting("paced")


def scored(questions: str, folder: Path) -> tuple[Run, float]:
    """A run on one question set, and its seconds."""
    began = time.perf_counter()
    objectives = ["forward_kl", "reverse_kl", f"reverse_kl@forward_kl*{STEP:g}"]
    run = gradalign.score(questions, teachers=[TEACHER], objectives=objectives, limit=LIMIT, budget=32, out=folder)
    return run, time.perf_counter() - began


def stages(run: Run) -> list[dict]:
    """Two stages less each single one, for uniform and for PACED's question weights, by both scores, with 95% intervals."""
    found = []
    for weighting in (QuestionWeighting(), PACED):
        two = Configuration("two stages", "forward_kl", TEACHER, then="reverse_kl", step=STEP, questions=weighting)
        for single in ("forward_kl", "reverse_kl"):
            pair = [two, Configuration("one stage", single, TEACHER, questions=weighting)]
            for by in SCORES:
                frame = rank_configurations(run, pair, by).frame.set_index("configuration")
                # the frame holds the difference of the lesser to the best
                sign = 1.0 if frame.loc["one stage", "difference"] == 0 else -1.0
                other = frame.loc["two stages" if sign > 0 else "one stage"]
                ends = sorted(sign * other[f"difference{end}"] for end in ("_low", "_high"))
                found.append({
                    "questions": str(weighting), "single": single, "by": by, "two_stages": float(frame.loc["two stages", by]),
                    "one_stage": float(frame.loc["one stage", by]), "difference": float(sign * other["difference"]), "low": float(ends[0]),
                    "high": float(ends[1]),
                })  # fmt: skip
    return found


def main() -> None:
    fits, curves, compared, seconds = [], [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        for questions in SETS:
            name = questions.split(":")[1]
            run, seconds[name] = scored(questions, Path(folder) / name)
            diagnostics = paced_diagnostics(run, bins=4 if SMALL else 8, draws=100 if SMALL else 1000)
            plain = ~diagnostics.fit.objective.str.contains("@")
            fits += [{"set": name, **row} for row in diagnostics.fit[plain].to_dict("records")]
            curves += [{"set": name, **row} for row in diagnostics.curve.to_dict("records") if "@" not in row["objective"]]
            compared += [{"set": name, **row} for row in stages(run)]
    stored = {"fits": fits, "curves": curves, "stages": compared, "step": STEP, "limit": LIMIT, "seconds": seconds}
    rows = [[f["set"], f["objective"], f["space"], *(_with_interval(f, name, 2) for name in ("alpha", "beta"))] for f in fits]
    rows += [["default", "", "", "1.00", "1.00"]]
    report("paced", f"Fitted p^alpha (1 - p)^beta, {LIMIT} questions a set", ["set", "objective", "in", "alpha [95%]", "beta [95%]"],
           rows, stored)  # fmt: skip
    rows = [
        [c["set"], c["questions"], c["by"], c["single"], f"{1e3 * c['two_stages']:+.3f}", f"{1e3 * c['one_stage']:+.3f}",
         f"{1e3 * c['difference']:+.3f} [{1e3 * c['low']:+.3f}, {1e3 * c['high']:+.3f}]"]
        for c in compared
    ]  # fmt: skip
    columns = ["set", "questions", "score (all ·10³)", "against", "two stages", "one stage", "difference [95%]"]
    report("paced", f"Forward KL, then reverse KL after a step of {STEP:g}, against one of them alone", columns, rows, stored)
    print("; ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    if not all(c["low"] <= c["difference"] <= c["high"] for c in compared):
        sys.exit("an interval does not hold its own difference")


def _with_interval(row: dict, name: str, decimals: int) -> str:
    return f"{row[name]:.{decimals}f} [{row[f'{name}_low']:.{decimals}f}, {row[f'{name}_high']:.{decimals}f}]"


if __name__ == "__main__":
    main()
