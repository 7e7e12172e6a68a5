"""Runs in an object store: the same parts, the same promises, read by the same call. `s3://` for real against a server on this machine."""

import os
import subprocess
import sys
import uuid

import pytest
from test_pipeline_exact import cast_of, config_for, questions
from test_resume import assert_same_rows
from test_store import rows

import gradalign
from gradalign.api import run_score
from gradalign.findings import rank
from gradalign.pipeline import Budget, Effort
from gradalign.store import RunFolder, load_run, place_of, status
from gradalign.types import GradalignError


def damage(place, table: str) -> None:
    file = next((place / table).glob("part-00001*.parquet"))
    content = file.read_bytes()
    file.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])


def exercise(address: str) -> None:
    """Write, write again, damage, and mend a run at an address."""
    folder = RunFolder(address)
    with folder.held():
        folder.open({"seed": 0}, {"versions": {}})
        for part in range(3):
            folder.write(part, rows(part))
        folder.write(1, rows(1), {"amount": 2})
        assert folder.finished()[1] == {"amount": 2}
    run = load_run(address)
    assert run.nodes.question.tolist() == ["q0", "q1", "q2"]
    assert str(run.path) == address
    damage(place_of(address), "nodes")
    with pytest.raises(GradalignError, match="does not match its checksum"):
        load_run(address)
    with folder.held():
        folder.open({"seed": 0}, {"versions": {}})
        assert {*folder.finished()} == {0, 2}
        folder.write(1, rows(1))
    assert len(load_run(address).nodes) == 3
    with pytest.raises(GradalignError, match="seed=0, not 1"), folder.held():
        folder.open({"seed": 1}, {})


def test_a_run_in_memory():
    exercise("memory://bucket/run")


def test_an_address_that_nothing_reaches_is_one_line():
    with pytest.raises(GradalignError, match="cannot be reached"):
        RunFolder("nowhere://bucket/run")


@pytest.fixture
def s3(monkeypatch):
    """An S3 server on this machine, over HTTP, with one empty bucket."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(bucket)
    yield f"s3://{bucket}"
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.scale
@pytest.mark.filterwarnings("ignore")
def test_a_run_in_a_bucket(s3):
    exercise(f"{s3}/runs/one")


@pytest.mark.scale
@pytest.mark.filterwarnings("ignore")
def test_workers_write_into_a_bucket(s3, tmp_path):
    """A process of its own, so that the workers it starts know where the bucket is, as they would from their machines."""
    pytest.importorskip("ray")
    settings = {"limit": 8, "rollouts": 8, "budget": 8, "part_size": 2, "device": "cpu"}
    out = f"{s3}/over-workers"
    code = f"import gradalign; gradalign.score('builtin:arithmetic', out={out!r}, executor='ray', workers=2, **{settings!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, timeout=240)
    here = gradalign.score("builtin:arithmetic", out=tmp_path / "here", **settings)
    assert_same_rows(here, load_run(out), tolerance=0)


@pytest.mark.scale
@pytest.mark.filterwarnings("ignore")
def test_a_bucket_that_is_not_there_is_one_line(s3):
    with pytest.raises(GradalignError, match="cannot"):
        RunFolder("s3://no-such-bucket/run").check()


@pytest.mark.scale
@pytest.mark.filterwarnings("ignore")
def test_a_score_into_a_bucket_is_that_into_a_folder(s3, tabular, tmp_path):
    config, effort = config_for(12, part_size=4), Effort(Budget(16))
    there = run_score(config, f"{s3}/scored", cast=cast_of(tabular), questions=questions(12), effort=effort)
    here = run_score(config, tmp_path / "scored", cast=cast_of(tabular), questions=questions(12), effort=effort)
    assert_same_rows(here, there, tolerance=0)
    found = status(f"{s3}/scored")
    assert (found.state, found.questions, found.done) == ("done", 12, 3)
    assert rank(there, by="drive").frame.equals(rank(here, by="drive").frame)
    page = gradalign.write_report(there)
    assert page.path.read_bytes().startswith(b"<!doctype html>")
    assert os.listdir(tmp_path) == ["scored"]
