"""What a run loses when something breaks: nothing. Faults × repetitions × questions lost, rows twice, rows wrong, and work done twice.

Each repetition scores a small set on an exactly known model in a process of its own, has one fault happen to it, lets the same command
go on, and compares every row of every table with a run that nothing happened to. Faults: `kill -9` at a random moment; the same in each
of three starts; a full disk (a tmpfs that is too small, then larger); a file cut short; a bit turned; a second process on the same run,
after which the first is killed; a wall clock that jumps by years at every look at it. Exits 1 if anything is lost, doubled or wrong, or
damage not told. `SMALL=1` for the size that CI runs. The full disk needs the right to mount; without it that row says so.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.progress import track
from trials import SMALL, Quality, draw_world, report

from gradalign.api import run_score
from gradalign.pipeline import Budget, Effort
from gradalign.store import TABLES, Run, load_run, log
from gradalign.types import GradalignError

QUESTIONS, PART = 24, 3
WORLD = draw_world("easy", QUESTIONS, [Quality(1.0), Quality(-0.5)], seed=5)
CONFIG = WORLD.config(seed=1, rollouts=8, part_size=PART)
SET = WORLD.student.questions()
_TOLD = ("full disk", "file cut short", "bit turned", "second process, first killed")
BUDGET = Effort(Budget(16))


@dataclass
class Tally:
    """What became of the repetitions of one fault."""

    repetitions: int = 0
    struck: int = 0
    refused: int = 0
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    redone: int = 0
    note: str = ""
    kept: list[int] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "kept"} | {
            "parts_kept": float(np.mean(self.kept)) if self.kept else 0.0
        }


def score(out: Path) -> None:
    run_score(CONFIG, out, cast=WORLD.cast(), questions=SET, effort=BUDGET)


def begun(out: Path, before: Callable[[], None] = lambda: None) -> int:
    """A process, forked from this one, that scores into a folder; 0 when done, 2 when it ended with a line, and what killed it else."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        before()
        score(out)
        code = 0
    except GradalignError:
        code = 2
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def marks(out: Path) -> dict[str, int]:
    """Finished parts, and when each was finished."""
    return {mark.name: mark.stat().st_mtime_ns for mark in (out / "finished").glob("*.json")}


def killed(out: Path, chance: random.Random, length: float, tally: Tally) -> None:
    """Start, kill at a random moment, and see that what was finished stays as it was."""
    child = begun(out)
    time.sleep(chance.uniform(0, length))
    os.kill(child, signal.SIGKILL)
    tally.struck += ended(child) == -signal.SIGKILL


def compare(expected: Run, out: Path, tally: Tally) -> None:
    """Every row of every table against those of a run that nothing happened to."""
    found = load_run(out)
    for table in TABLES:
        left, right = keyed(expected.frame(table)), keyed(found.frame(table))
        tally.lost += len(left.keys() - right.keys())
        tally.twice += len(found.frame(table)) - len(right)
        tally.wrong += sum(not same(left[key], right[key]) for key in left.keys() & right.keys())
        tally.wrong += len(right.keys() - left.keys())


def keyed(frame: pd.DataFrame) -> dict[tuple, list[Any]]:
    """Rows by what tells them apart: everything in them that is a name or a whole number."""
    names = [c for c in frame.columns if pd.api.types.is_string_dtype(frame[c]) or pd.api.types.is_integer_dtype(frame[c])]
    return {
        tuple(map(str, key)): list(row)
        for key, row in zip(
            frame[names].itertuples(index=False), frame.drop(columns=names).itertuples(index=False), strict=True
        )
    }


def same(left: list[Any], right: list[Any]) -> bool:
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b or (pd.isna(a) and pd.isna(b))
        for a, b in zip(left, right, strict=True)
    )


class Harness:
    """Repeats faults against one expected run."""

    def __init__(self, place: Path):
        self.place = place
        began = time.monotonic()
        score(place / "expected")
        self.length = time.monotonic() - began
        self.expected = load_run(place / "expected")
        self.rows = sum(len(self.expected.frame(table)) for table in TABLES)
        self.number = 0

    def fresh(self) -> Path:
        self.number += 1
        return self.place / f"run-{self.number}"

    def finish(self, out: Path, tally: Tally, before: dict[str, int]) -> None:
        """Let the same command go on; finished parts must stand as they were."""
        code = ended(begun(out))
        tally.repetitions += 1
        if code != 0:
            tally.note = f"the run could not go on (exit code {code})"
            tally.lost += QUESTIONS
            return
        after = marks(out)
        tally.redone += sum(after[name] != when for name, when in before.items())
        tally.kept.append(len(before))
        compare(self.expected, out, tally)
        shutil.rmtree(out)

    def kill(self, times: int, chance: random.Random, tally: Tally) -> None:
        out, before = self.fresh(), {}
        for _ in range(times):
            killed(out, chance, 1.1 * self.length / times, tally)
            now = marks(out)
            tally.redone += sum(now.get(name) != when for name, when in before.items())
            before = now
        self.finish(out, tally, before)

    def full_disk(self, chance: random.Random, tally: Tally) -> None:
        """A disk that fills at some moment of the run, and room made on it."""
        disk = self.place / "disk"
        disk.mkdir(exist_ok=True)
        whole = sum(file.stat().st_size for file in (self.place / "expected").rglob("*") if file.is_file())
        size = int(whole * chance.uniform(0.05, 0.9))
        with mounted(disk, size) as fault:
            if fault:
                tally.note = fault
                return
            out = disk / "run"
            tally.refused += ended(begun(out)) == 2
            tally.struck += 1
            before = marks(out) if out.exists() else {}
            subprocess.run(["mount", "-o", f"remount,size={8 * whole}", str(disk)], check=True)
            self.finish(out, tally, before)

    def damage(self, how: str, chance: random.Random, tally: Tally) -> None:
        """A file of a finished run, a marker or a table's, cut short or with one bit turned."""
        out = self.fresh()
        shutil.copytree(self.place / "expected", out, copy_function=shutil.copy2)
        file = chance.choice(sorted([*out.glob("*/part-*.parquet"), *out.glob("finished/*.json")]))
        content = bytearray(file.read_bytes())
        at = chance.randrange(len(content))
        if how == "cut":
            content = content[:at]
        else:
            content[at] ^= 1 << chance.randrange(8)
        before = {name: when for name, when in marks(out).items() if Path(name).stem != file.name.split(".")[0]}
        file.write_bytes(bytes(content))
        tally.struck += 1
        try:
            load_run(out)
        except GradalignError:
            tally.refused += 1
        self.finish(out, tally, before)

    def second(self, chance: random.Random, tally: Tally) -> None:
        """A second process on a run under way is refused; when the first is killed, the next goes on."""
        out = self.fresh()
        first = begun(out)
        while not (out / "run.json").exists():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.3 * self.length))
        os.kill(first, signal.SIGSTOP)  # so that it is still under way, however long the second one takes
        tally.refused += ended(begun(out)) == 2
        os.kill(first, signal.SIGKILL)
        tally.struck += ended(first) == -signal.SIGKILL
        self.finish(out, tally, marks(out))

    def clock(self, chance: random.Random, tally: Tally) -> None:
        """Every look at the wall clock is years away from the last, before and after a kill."""

        def unsettle() -> None:
            real = time.time
            time.time = lambda: real() + chance.uniform(-3e8, 3e8)
            log.datetime = type(
                "Jumping", (datetime,), {"now": classmethod(lambda cls, zone: cls.fromtimestamp(time.time(), zone))}
            )

        out = self.fresh()
        child = begun(out, unsettle)
        time.sleep(chance.uniform(0, self.length))
        os.kill(child, signal.SIGKILL)
        tally.struck += ended(child) == -signal.SIGKILL
        before = marks(out)
        if ended(begun(out, unsettle)) != 0:
            tally.note = "the run could not go on"
            tally.lost += QUESTIONS
        self.finish(out, tally, before)


@contextmanager
def mounted(disk: Path, size: int):
    """A tmpfs of so many bytes; yields what stands in the way, if anything does."""
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, text=True)
    if made.returncode:
        yield f"not done: {(made.stderr.strip() or 'mount failed').splitlines()[0]}"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def main() -> int:
    torch.set_num_threads(1)  # processes are forked from this one
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        harness = Harness(Path(place))
        faults: list[tuple[str, int, Callable[[Tally], None]]] = [
            ("kill -9 at a random moment", 100, lambda tally: harness.kill(1, chance, tally)),
            ("kill -9 in each of three starts", 30, lambda tally: harness.kill(3, chance, tally)),
            ("full disk", 30, lambda tally: harness.full_disk(chance, tally)),
            ("file cut short", 50, lambda tally: harness.damage("cut", chance, tally)),
            ("bit turned", 50, lambda tally: harness.damage("flip", chance, tally)),
            ("second process, first killed", 30, lambda tally: harness.second(chance, tally)),
            ("clock that jumps, and kill -9", 30, lambda tally: harness.clock(chance, tally)),
        ]
        rows = []
        for name, count, strike in faults:
            tally = Tally()
            wanted = max(3, count // 10) if SMALL else count
            for _ in track(range(wanted), description=name):
                before = tally.struck
                while tally.struck == before and not tally.note:  # a run that ended before it was struck is not counted
                    strike(tally)
            rows.append({"fault": name} | tally.row())
    heads = {
        "fault": "fault", "repetitions": "runs", "struck": "struck", "refused": "told", "parts_kept": "parts kept", "lost": "lost rows",
        "twice": "rows twice", "wrong": "wrong rows", "redone": "parts redone",
    }  # fmt: skip
    heads |= {"note": ""} if any(row["note"] for row in rows) else {}
    title = f"{QUESTIONS} questions in {QUESTIONS // PART} parts, {harness.rows:,} rows"
    report("crashes", title, [*heads.values()], [[_cell(row[name]) for name in heads] for row in rows], {"faults": rows})
    silent = [row for row in rows if row["fault"] in _TOLD and row["refused"] < row["struck"]]
    return int(bool(silent) or any(row["lost"] or row["twice"] or row["wrong"] or row["redone"] for row in rows))


def _cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
