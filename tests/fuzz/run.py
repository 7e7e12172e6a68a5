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
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1]), str(HERE.parents[1] / "cli")]

from fuzz.target import SECONDS  # noqa: E402

REGRESSIONS = HERE / "regressions"
GUIDED = 1 / 3  # of the cases of a target that libFuzzer can guide
_START = 180.0  # seconds until the first case, imports and a first run included
_ROUND = 500


def shares(cases: int, names: list[str], seed: int) -> list[tuple[str, str, int, int]]:
    """(target, maker, cases, seed) of each piece of work, at most _ROUND cases each."""
    from fuzz.table import TARGETS

    guides = _has_atheris()
    whole = sum(TARGETS[name].share for name in names)
    found: list[tuple[str, str, int, int]] = []
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
    """Runs pieces of work in processes that are watched, and counts how cases end."""

    def __init__(self, seed: int, out: Path | None) -> None:
        self.seed, self.out, self.began, self.lock = seed, out, time.monotonic(), Lock()
        self.found: dict[str, dict[str, Any]] = {}
        self.failures: list[dict[str, Any]] = []

    def figures(self) -> dict[str, Any]:
        """What came of it so far."""
        keys = ("cases", "success", "refused", "failed", "hypothesis", "libfuzzer")
        total = {key: sum(counts[key] for counts in self.found.values()) for key in keys}
        took = round(time.monotonic() - self.began)
        return {"seed": self.seed, "seconds": took, "processors": os.cpu_count(), "total": total, "targets": self.found}

    def run(self, work: Sequence[tuple[str, str, int, int]], workers: int) -> None:
        """Share the pieces out over threads, each of which watches one process at a time."""
        waiting: Queue[tuple[str, str, int, int]] = Queue()
        for piece in work:
            waiting.put(piece)
        threads = [Thread(target=self._watch_all, args=(waiting,)) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _watch_all(self, waiting: "Queue[tuple[str, str, int, int]]") -> None:
        from fuzz.worker import Worker

        worker = Worker(SECONDS, _START)
        while True:
            try:
                name, maker, count, seed = waiting.get_nowait()
            except Empty:
                worker.end()
                return
            for verdict, case, seconds, said in worker.work(name, maker, count, seed):
                with self.lock:
                    self._note(name, maker, verdict, case, seconds, said)
            with self.lock:
                if self.out is not None:
                    self.out.write_text(json.dumps(self.figures(), indent=1) + "\n", encoding="utf-8")

    def _note(self, name: str, maker: str, verdict: str, case: bytes, seconds: float, said: str) -> None:
        counts = self.found.setdefault(
            name, {"cases": 0, "success": 0, "refused": 0, "failed": 0, "hypothesis": 0, "libfuzzer": 0, "slowest": 0.0}
        )
        counts["cases"] += 1
        counts[maker] += 1
        counts[verdict] += 1
        counts["slowest"] = max(counts["slowest"], round(seconds, 3))
        if verdict == "failed":
            stored = store(name, case)
            key = re.sub(r"0x[0-9a-f]+|\d+", "#", said.splitlines()[-1] if said else "")[:80]
            if not any(failure["key"] == key and failure["target"] == name for failure in self.failures):
                self.failures.append({"target": name, "key": key, "case": stored.name, "said": said[-3000:]})
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

    campaign = Campaign(options.seed, options.out)
    campaign.run(shares(options.cases, options.targets or list(TARGETS), options.seed), options.workers)
    print(json.dumps(campaign.figures(), indent=1))
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(main())
