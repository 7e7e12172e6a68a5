"""A campaign: python tests/fuzz/run.py [--cases 100000] [--seed 0] [--targets NAME…]. Cases run in processes that are ended when one takes
longer than 5 seconds; failing cases are stored under tests/fuzz/regressions/, where the fast tests find them.

Cases come from hypothesis; where atheris is installed, a third of those of texts and answers come from libFuzzer, which looks at coverage.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, Queue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1]), str(HERE.parents[1] / "cli")]

from fuzz.target import SECONDS  # noqa: E402

if TYPE_CHECKING:
    from fuzz.worker import Worker

REGRESSIONS = HERE / "regressions"
GUIDED = 1 / 3  # of the cases of a target that libFuzzer can guide
_START = 180.0  # seconds until the first case, imports and a first run included
_ROUND = 500
_VERDICTS = ("success", "refused", "failed")
_APART = ("not read", "wanted")  # what reached no parser, and how many cases were asked for
_COUNTED = ("cases", *_VERDICTS, *_APART, "hypothesis", "libfuzzer")
Piece = tuple[str, str, int, int]  # target, maker, cases, seed


def shares(cases: int, names: list[str], seed: int) -> list[Piece]:
    """(target, maker, cases, seed) of each piece of work, at most _ROUND cases each."""
    from fuzz.table import TARGETS

    guides = _has_atheris()
    whole = sum(TARGETS[name].share for name in names)
    found: list[Piece] = []
    for name in names:
        target = TARGETS[name]
        wanted = max(1, round(cases * target.share / whole))
        guided = round(wanted * GUIDED) if guides and target.guided else 0
        pieces = [min(_ROUND, wanted - guided - done) for done in range(0, wanted - guided, _ROUND)]
        found += [(name, "hypothesis", count, seed * 1_000_003 + _ROUND * i) for i, count in enumerate(pieces)]
        found += [(name, "libfuzzer", guided, seed)] if guided else []
    return sorted(found, key=lambda piece: piece[1])  # libFuzzer's end with their process, the others share one


def _has_atheris() -> bool:
    try:
        import atheris  # noqa: F401
    except ImportError:
        return False
    return True


class Campaign:
    """Runs pieces of work in processes that are watched, and counts how cases end.

    With `out` the figures are written there, and each finished piece into a journal beside it: a campaign that was killed goes on, and
    repeats only the pieces that it had not finished. Of `names`, all figures are new; of other targets, those that `out` has stay.
    """

    def __init__(self, seed: int, out: Path | None, names: Sequence[str]) -> None:
        self.seed, self.out, self.lock = seed, out, Lock()
        before = (
            json.loads(out.read_text(encoding="utf-8")) if out is not None and out.exists() else {"seconds": 0, "targets": {}}
        )
        self.others = {name: found for name, found in before["targets"].items() if name not in names}
        self.seconds = before["seconds"] if self.others else 0
        self.journal = None if out is None else out.with_suffix(".pieces.jsonl")
        self.done: list[dict[str, Any]] = []
        self.failures: set[tuple[str, str]] = set()
        if self.journal is not None and self.journal.exists():
            self.done = [json.loads(line) for line in self.journal.read_text(encoding="utf-8").splitlines()]

    def figures(self) -> dict[str, Any]:
        """What came of the finished pieces, by target; `seconds` are those of all processes together."""
        targets: dict[str, dict[str, Any]] = dict(self.others)
        for done in self.done:
            found = targets.setdefault(done["target"], dict.fromkeys((*_COUNTED, "slowest"), 0))
            found["cases"] += sum(done[verdict] for verdict in _VERDICTS)
            found[done["maker"]] += sum(done[verdict] for verdict in _VERDICTS)
            for key in (*_VERDICTS, *_APART):
                found[key] += done[key]
            found["slowest"] = max(found["slowest"], done["slowest"])
        total = {key: sum(found[key] for found in targets.values()) for key in _COUNTED}
        seconds = self.seconds + round(sum(done["seconds"] for done in self.done))
        return {"seed": self.seed, "seconds": seconds, "processors": os.cpu_count(), "total": total, "targets": targets}

    def run(self, work: Sequence[Piece], workers: int) -> None:
        """Share the pieces out over threads, each of which watches one process at a time."""
        waiting: Queue[Piece] = Queue()
        finished = {(done["target"], done["maker"], done["seed"]) for done in self.done}
        for piece in work:
            if (piece[0], piece[1], piece[3]) not in finished:
                waiting.put(piece)
        threads = [Thread(target=self._watch_all, args=(waiting,)) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.journal is not None:
            self.journal.unlink(missing_ok=True)

    def _watch_all(self, waiting: "Queue[Piece]") -> None:
        from fuzz.worker import Worker

        worker = Worker(SECONDS, _START)
        while True:
            try:
                piece = waiting.get_nowait()
            except Empty:
                worker.end()
                return
            self._keep(self._done(worker, piece))

    def _done(self, worker: "Worker", piece: Piece) -> dict[str, Any]:
        """Run a piece, and count."""
        name, maker, count, seed = piece
        began = time.monotonic()
        counts: dict[str, Any] = {
            "target": name,
            "maker": maker,
            "seed": seed,
            **dict.fromkeys((*_VERDICTS, *_APART, "slowest"), 0),
        }
        counts["wanted"] = count
        if maker == "libfuzzer":
            worker.end()  # modules that are imported already cannot be instrumented any more
        for verdict, case, seconds, said in worker.work(name, maker, count, seed):
            counts[verdict] += 1
            counts["slowest"] = max(counts["slowest"], round(seconds, 3))
            if verdict == "failed":
                self._fail(name, case, said)
        return counts | {"seconds": round(time.monotonic() - began, 1)}

    def _keep(self, counts: dict[str, Any]) -> None:
        with self.lock:
            self.done.append(counts)
            if self.out is None or self.journal is None:
                return
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(counts) + "\n")
            self.out.write_text(json.dumps(self.figures(), indent=1) + "\n", encoding="utf-8")

    def _fail(self, name: str, case: bytes, said: str) -> None:
        """Store and print a failing case, one for each way in which a target fails."""
        key = re.sub(r"0x[0-9a-f]+|\d+", "#", said.splitlines()[-1] if said else "")[:80]
        with self.lock:
            if (name, key) not in self.failures:
                self.failures.add((name, key))
                stored = store(name, case)
                stored.write_bytes(case)
                print(f"FAILED {name} ({stored.name}): {said[-1500:]}", flush=True)


def store(name: str, case: bytes) -> Path:
    """Where a failing case of a target is kept."""
    folder = REGRESSIONS / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / hashlib.sha256(case).hexdigest()[:16]


def main() -> int:
    """Run a campaign and print, and with --out store, what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--targets", nargs="*")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    from fuzz.table import TARGETS

    names = options.targets or list(TARGETS)
    campaign = Campaign(options.seed, options.out, names)
    campaign.run(shares(options.cases, names, options.seed), options.workers)
    figures = campaign.figures()
    print(json.dumps(figures, indent=1))
    return wrong(figures)


def wrong(figures: dict[str, Any]) -> int:
    """The exit code of a campaign: 1 where cases failed, in this process or in one before, or where a target had too few."""
    short = [name for name, found in figures["targets"].items() if found["cases"] + found["not read"] < found["wanted"]]
    for name in short:
        print(f"{name}: fewer cases than wanted", flush=True)
    return 1 if short or figures["total"]["failed"] else 0


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(main())
