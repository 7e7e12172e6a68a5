"""All benchmarks of speed, one after the other, and one table of them: each row is ours against a baseline measured in the same run.

    python benchmarks/bench.py                    # keeps benchmarks/results/bench.json
    python benchmarks/bench.py vocabulary_pass    # this one anew; the others' rows stay, if they were measured on this machine
    SMALL=1 python benchmarks/bench.py            # the size that CI runs: everything is run, its figures mean little; keeps nothing

Every benchmark is a process of its own, which prints its own, longer table where it is run alone. Medians, in brackets the smallest and
the largest of the turns. A bar that is not kept is marked, and fails nothing: what a busy machine measures is no verdict.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from side_by_side import ASKED, Comparison

PLACE = Path(__file__).parent
RESULT = PLACE / "results" / "bench.json"
SMALL = os.environ.get("SMALL") == "1"
BENCHMARKS = {  # with the threads of each
    "vocabulary_pass": None, "sampling": None, "trees_and_rows": 1, "first_steps_cost": None, "demo_profile": None,
    "linear_cost": 1,
}  # fmt: skip


def comparisons_of(name: str, threads: int | None) -> list[Comparison]:
    """Run one benchmark; what it printed is shown where it failed before it told anything."""
    with tempfile.TemporaryDirectory() as place:
        told = Path(place) / "comparisons.json"
        environment = os.environ | {ASKED: str(told)} | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        done = subprocess.run(
            [sys.executable, str(PLACE / f"{name}.py")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if not told.exists():
            raise SystemExit(f"{name} failed:\n{done.stdout}")
        return [Comparison(**row) for row in json.loads(told.read_text())]


def stored(names: list[str]) -> list[dict[str, Any]]:
    """The rows of these benchmarks as they were stored, or an error where they are of another machine than this."""
    if not names:
        return []
    told = json.loads(RESULT.read_text())
    if told["machine"] != machine():
        raise SystemExit(f"{RESULT} was measured on another machine or with other versions; run all benchmarks: make bench")
    return [row for row in told["rows"] if row["benchmark"] in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all, if none is named")
    asked = parser.parse_args().names or [*BENCHMARKS]
    if unknown := [name for name in asked if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]!r}; choose from {', '.join(BENCHMARKS)}")
    left = [] if SMALL else stored([name for name in BENCHMARKS if name not in asked])
    console = Console(width=200)
    found = {name: comparisons_of(name, BENCHMARKS[name]) for name in track(asked, "benchmarks", console=console)}
    table = Table(title="gradalign, side by side" + (" (reduced sizes)" if SMALL else ""))
    for head in ("", "unit", "ours", "against", "its", "ratio", "bar", "kept"):
        table.add_column(head, justify="right" if head in ("ours", "its", "ratio", "bar") else "left")
    for rows in found.values():
        for comparison in rows:
            table.add_row(*comparison.cells())
        table.add_section()
    console.print(table)
    if SMALL:
        return
    made = [
        {"benchmark": name, **asdict(comparison), "ratios": comparison.ratios, "kept": comparison.met}
        for name, of_one in found.items()
        for comparison in of_one
    ]
    rows = sorted([*made, *left], key=lambda row: [*BENCHMARKS].index(row["benchmark"]))
    RESULT.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
