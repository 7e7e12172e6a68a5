"""Killed at any moment and started again, a run ends with the rows of an uninterrupted one, and does nothing finished twice."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gradalign
from gradalign.store import TABLES, Run, load_run

SETTINGS = {
    "student": "builtin:small",
    "teachers": ["ctx:correct_demo", "ctx:wrong_demo", "ctx:summary"],
    "objectives": ["reverse_kl", "forward_kl", "jsd:0.5", "sampled_kl", "pbsd:0.5"],
    "limit": 40,
    "rollouts": 8,
    "teacher_rollouts": 4,
    "budget": 96,
    "part_size": 1,
}


def assert_same_rows(one: Run, other: Run, tolerance: float) -> None:
    for table in TABLES:
        left, right = one.frame(table), other.frame(table)
        assert len(left) == len(right), table
        for column in left.columns:
            a, b = left[column], right[column]
            if pd.api.types.is_float_dtype(a) and tolerance:
                np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=f"{table}.{column}")
            elif column == "logprobs":
                for x, y in zip(a, b, strict=True):
                    np.testing.assert_allclose(x, y, rtol=max(tolerance, 1e-9), atol=max(tolerance, 1e-9))
            elif column.startswith("step") and tolerance:  # they rest on the sampler's log-probabilities too
                for x, y in zip(a, b, strict=True):
                    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(x).max())
            elif a.map(lambda cell: isinstance(cell, np.ndarray)).any():
                assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)), f"{table}.{column}"
            else:
                assert a.equals(b), f"{table}.{column}"


def test_rows_do_not_depend_on_the_batch_size(tmp_path):
    settings = SETTINGS | {"limit": 6, "part_size": 3}
    one = gradalign.score("builtin:arithmetic", out=tmp_path / "one", batch_size=1, device="cpu", **settings)
    other = gradalign.score("builtin:arithmetic", out=tmp_path / "other", batch_size=256, device="cpu", **settings)
    assert_same_rows(one, other, tolerance=2e-3)
    assert one.rollouts.tokens.map(tuple).equals(other.rollouts.tokens.map(tuple))


def start(out: Path) -> subprocess.Popen:
    code = f"import gradalign; gradalign.score('builtin:arithmetic', out={str(out)!r}, device='cpu', **{SETTINGS!r})"
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"HF_HUB_OFFLINE": "1"})


def finished(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "finished").glob("*.json")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_ten_times_a_run_ends_with_the_same_rows(tmp_path):
    expected = gradalign.score("builtin:arithmetic", out=tmp_path / "whole", device="cpu", **SETTINGS)
    out, chance, kept = tmp_path / "killed", random.Random(0), {}
    kills = []
    while len(kills) < 10:
        run = start(out)
        before = len(finished(out))
        while run.poll() is None and len(finished(out)) == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        run.send_signal(signal.SIGKILL)
        kills.append(run.wait())
        now = finished(out)
        assert kept.items() <= now.items(), "a finished part was done again"
        kept = now
    assert kills == [-signal.SIGKILL] * 10
    assert start(out).wait() == 0
    assert kept.items() <= finished(out).items()
    assert_same_rows(expected, load_run(out), tolerance=0)
