"""Where the driver of a large run becomes the limit: 10,000 questions over 64 workers and more, simulated.

The driver is the real one (`pipeline.execute`): it plans, hands out parts, takes in results, keeps the standing of 8 teachers and 2
objectives and the log, and its time is measured as it works (the table that a terminal shows takes a twentieth more at most, by design,
and is left out). Workers are simulated: a part takes as long as its tokens do at the pace of a worker, give or take a fifth. What Ray
takes of the driver's time for one part is measured beforehand on this machine, with tasks and results of the same size while as
many calls are under way. A virtual clock puts them together: results wait while the driver is busy, and workers have one part queued
behind the one they are at.

Pace: 5,777 tokens/s for each worker, which Red Hat published for Llama-3.1-8B (FP8) with vLLM 0.10.0 on one H100 in MLPerf Inference
v5.1 (offline). A question takes 64 + 8 + 64 rollouts. Long rollouts are of 300 tokens, short ones of 20. Forward passes are taken to
cost a quarter more. Efficiency is work done over workers times time. The last column is how many workers would keep the driver
busy all the time: a part's length over the driver's time for it. `SMALL=1` for the size that CI runs.
"""

import heapq
import logging
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from trials import SMALL, report

from gradalign.pipeline import Budget, Done, Effort, Facts, Progress, RunConfig, Silent, Task
from gradalign.pipeline.execute import execute
from gradalign.store import RunFolder
from gradalign.types import Question

QUESTIONS = 1_000 if SMALL else 10_000
WORKERS = (64,) if SMALL else (16, 64, 256, 1024)
PACE, ROLLOUTS, PASSES = 5777.0, 64 + 8 + 64, 1.25
LENGTHS = {"long (300 tokens)": 300, "short (20 tokens)": 20}
TEACHERS = tuple(f"model:t{i}" for i in range(8))
OBJECTIVES = ("reverse_kl", "forward_kl")


class Simulated:
    """An executor whose workers live by a virtual clock; its driver's time is real."""

    facts = Facts({}, (), 4096, "simulated")

    def __init__(self, workers: int, length: int, ray_cost: float, seed: int = 0):
        self.workers, self.length, self.ray_cost = workers, length, ray_cost
        self.rng = np.random.default_rng(seed)
        self.now = self.driver = self.work = 0.0

    def run(self, folder: RunFolder, config: RunConfig, tasks: Sequence[Task], progress: Progress) -> Iterator[Done]:
        waiting, free, coming = deque(tasks), [0.0] * self.workers, []
        for _ in range(2):
            for worker in range(self.workers):
                self._hand_out(worker, waiting, free, coming)
        while coming:
            end, worker, _, task, took = heapq.heappop(coming)
            (
                folder.path / "finished" / f"part-{task.part:05d}.json"
            ).touch()  # the driver looks whether the worker's part stands
            self.now = max(self.now, end)
            began = time.perf_counter()
            yield Done(
                task,
                score_rows(task, self.rng),
                136 * len(task.places),
                136 * self.length * len(task.places),
                took,
                f"w{worker}",
            )
            self._busy(time.perf_counter() - began + self.ray_cost)
            self._hand_out(worker, waiting, free, coming)

    def _hand_out(self, worker: int, waiting: deque[Task], free: list[float], coming: list[tuple]) -> None:
        """Give a worker its next part, which it begins when it is free and the part has come."""
        if not waiting:
            return
        task = waiting.popleft()
        took = len(task.places) * ROLLOUTS * self.length * PASSES / PACE * self.rng.uniform(0.8, 1.2)
        free[worker] = max(free[worker], self.now) + took
        self.work += took
        heapq.heappush(coming, (free[worker], worker, task.part, task, took))

    def _busy(self, seconds: float) -> None:
        self.now += seconds
        self.driver += seconds

    def close(self) -> None: ...


def score_rows(task: Task, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows of the table `scores` of the size of real ones."""
    return [
        {"question": question.id, "teacher": teacher, "objective": objective}
        | dict(zip(("length", "dot", "dot_se", "d_norm2", "advantage"), rng.random(5).tolist(), strict=True))
        for _, question in task.places
        for teacher in TEACHERS
        for objective in OBJECTIVES
    ]


def ray_costs(task: Task) -> dict[int, float]:
    """Seconds of the driver's time that one task and its result take in Ray, while so many workers are at work: medians over 100."""
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    @ray.remote(num_cpus=0)
    class Worker:
        def score(self, task: Task, rows: list) -> list:
            return rows

        def busy(self) -> None:
            time.sleep(3600)

    worker, others, rows = Worker.remote(), Worker.remote(), score_rows(task, np.random.default_rng(0))
    under_way, found = [], {}
    for workers in WORKERS:
        under_way += [others.busy.remote() for _ in range(workers - len(under_way) - 1)]
        taken = []
        for _ in range(110):
            began = time.process_time()
            ref = worker.score.remote(task, rows)
            while ref not in ray.wait([*under_way, ref], num_returns=1, timeout=0.5)[0]:
                pass
            ray.get(ref)
            taken.append(time.process_time() - began)
        found[workers] = float(np.median(taken[10:]))
    ray.shutdown()
    return found


def simulate(workers: int, length: int, cost: float, place: Path) -> dict[str, float]:
    """One run, start to end, in virtual time."""
    config = RunConfig("s", "q", TEACHERS, OBJECTIVES, max_tokens=length)
    questions = [Question(f"q{i:05d}", "which?", "yes", "boolean") for i in range(QUESTIONS)]
    folder = RunFolder(place)
    executor = Simulated(workers, length, cost)
    with folder.held():
        folder.open({"seed": 0}, {})
        (place / "finished").mkdir()
        execute(folder, questions, executor, config, Effort(Budget(64)), Silent())
    parts = -(-QUESTIONS // 8)
    return {
        "workers": workers,
        "length": length,
        "hours": executor.now / 3600,
        "efficiency": executor.work / (workers * executor.now),
        "driver_share": executor.driver / executor.now,
        "ray_ms_a_part": 1000 * cost,
        "driver_ms_a_part": 1000 * executor.driver / parts,
        "limit": executor.work / executor.driver,
    }


def main() -> int:
    questions = [(i, Question(f"q{i:05d}", "which? " * 60, "yes", "boolean")) for i in range(8)]
    from gradalign.pipeline.group import Spending

    costs = ray_costs(Task(0, questions, Spending(Budget(64), QUESTIONS), 1000))
    found = []
    with tempfile.TemporaryDirectory() as place:
        jobs = [(workers, length) for length in LENGTHS.values() for workers in WORKERS]
        for number, (workers, length) in enumerate(track(jobs, description="simulated runs")):
            found.append(simulate(workers, length, costs[workers], Path(place) / str(number)))
    names = {length: name for name, length in LENGTHS.items()}
    rows = [
        [
            names[int(f["length"])],
            f"{f['workers']:,}",
            f"{f['hours']:.3f}",
            f"{f['efficiency']:.1%}",
            f"{f['driver_share']:.1%}",
            f"{f['driver_ms_a_part']:.1f}",
            f"{f['ray_ms_a_part']:.1f}",
            f"{f['limit']:,.0f}",
        ]
        for f in found
    ]
    heads = ["rollouts", "workers", "hours", "efficiency", "driver busy", "driver's ms a part", "Ray's of it", "driver full at"]
    title = f"{QUESTIONS:,} questions in parts of 8, {PACE:,.0f} tokens/s a worker"
    report("driver_limit", title, heads, rows, {"runs": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
