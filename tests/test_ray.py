"""The executor over Ray: rows of the local one, whatever happens to workers and nodes."""

import os
import sys
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
from test_pipeline_exact import cast_of, config_for, questions
from test_resume import assert_same_rows
from test_tries import events, marked

import gradalign
from gradalign.api import run_score
from gradalign.pipeline import Budget, Effort, Execution
from gradalign.pipeline.on_ray import RayExecutor
from gradalign.store import load_run, status
from gradalign.testbed import TabularCodec
from gradalign.types import GradalignError

ray = pytest.importorskip("ray")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
pytestmark = [pytest.mark.scale, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
SMALL = Effort(Budget(16))


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Three nodes of one core on this machine; tests may lose nodes that they add."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


class Slow(TabularCodec):
    """Takes its time at each prompt, so that there is a middle of the run."""

    def prompt(self, user: str, system: str | None = None) -> tuple[int, ...]:
        time.sleep(0.1)
        return super().prompt(user, system)


class Deadly(TabularCodec):
    """Kills its process, without a word, at prompts that name a marked question."""

    def prompt(self, user: str, system: str | None = None) -> tuple[int, ...]:
        if "poison" in user:
            os._exit(1)
        return super().prompt(user, system)


class Faulty(TabularCodec):
    """Raises at prompts that name a marked question."""

    def prompt(self, user: str, system: str | None = None) -> tuple[int, ...]:
        if "poison" in user:
            raise ValueError("no such glyph")
        return super().prompt(user, system)


class Refusing(TabularCodec):
    """Says what the user can mend."""

    def prompt(self, user: str, system: str | None = None) -> tuple[int, ...]:
        raise GradalignError("no chat template; pass --chat-template FILE")


def cast_with(tabular, codec):
    cast = cast_of(tabular)
    return replace(cast, student=replace(cast.student, model=replace(cast.student.model, codec=codec)))


def over(workers: int) -> Execution:
    return Execution(executor="ray", workers=workers)


def test_rows_are_those_of_the_local_executor(tmp_path):
    settings = {"limit": 20, "rollouts": 8, "budget": 16, "part_size": 4, "device": "cpu"}
    here = gradalign.score("builtin:arithmetic", out=tmp_path / "here", **settings)
    there = gradalign.score("builtin:arithmetic", out=tmp_path / "there", executor="ray", workers=2, **settings)
    assert_same_rows(here, there, tolerance=0)
    assert {event["worker"] for event in events(there, "part")} == {"worker 0", "worker 1"}
    assert here.identity == there.identity


def test_a_run_that_may_stop_early_stops_where_the_local_one_does(tabular, tmp_path):
    config, effort = config_for(80, part_size=4), Effort(Budget(16), precision=0.4)
    found = {
        name: run_score(config, tmp_path / name, execution, cast=cast_of(tabular), questions=questions(80), effort=effort)
        for name, execution in (("here", Execution()), ("there", over(2)))
    }
    assert found["here"].outcome["stopped"]
    assert found["here"].outcome == found["there"].outcome
    assert_same_rows(found["here"], found["there"], tolerance=0)


def test_a_node_that_is_lost_costs_only_what_it_had_not_finished(cluster, tabular, tmp_path):
    config = config_for(60, part_size=3)
    node = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    losses = []

    def lose() -> None:
        marks = tmp_path / "there" / "finished"
        until = time.monotonic() + 120
        while time.monotonic() < until and len(list(marks.glob("*.json"))) < 6:
            time.sleep(0.02)
        losses.append({mark.name: mark.stat().st_mtime_ns for mark in marks.glob("*.json")})
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    cast = cast_with(tabular, Slow(tabular))
    there = run_score(config, tmp_path / "there", over(4), cast=cast, questions=questions(60), effort=SMALL)
    thread.join()
    here = run_score(config, tmp_path / "here", cast=cast_of(tabular), questions=questions(60), effort=SMALL)
    assert_same_rows(here, there, tolerance=0)
    assert 6 <= len(losses[0]) < 20
    assert {event["reason"] for event in events(there, "failed")} <= {
        "its worker was lost (ActorDiedError)",
        "its worker was lost (ActorUnavailableError)",
    }
    assert len(events(there, "failed")) >= 1
    after = {mark.name: mark.stat().st_mtime_ns for mark in (tmp_path / "there" / "finished").glob("*.json")}
    assert losses[0].items() <= after.items(), "a finished part was done again"


@pytest.mark.parametrize(("kind", "said"), [(Faulty, "ValueError: no such glyph"), (Deadly, "its worker was lost")])
def test_a_poison_question_is_set_aside_after_three_tries(kind, said, tabular, tmp_path):
    config = config_for(16, part_size=4)
    cast = cast_with(tabular, kind(tabular))
    run = run_score(config, tmp_path / "r", over(2), cast=cast, questions=marked(16, 5), effort=SMALL)
    aside = run.skipped[run.skipped.reason.str.startswith("set aside")]
    assert aside.question.tolist() == ["q5"]
    assert said in aside.detail.iloc[0]
    assert {*run.scores.question} == {f"q{i}" for i in range(16)} - {"q5"}
    failed = Counter(event["part"] for event in events(run, "failed"))
    assert max(failed.values()) == 3
    # a worker that dies as it begins a part may take the answer to the one before with it
    assert kind is Deadly or failed.total() == 3


def test_a_worker_that_dies_while_it_has_nothing_to_do_costs_nothing(tabular, tmp_path, monkeypatch):
    """It is killed between two looks of a run that may stop early, and comes back without models."""
    waves = []
    whole = RayExecutor.run

    def run(self, *arguments):
        waves.append(1)
        if len(waves) == 2:
            ray.kill(self.hands[0].actor, no_restart=False)
            time.sleep(8)  # until Ray has started it again
        yield from whole(self, *arguments)

    monkeypatch.setattr(RayExecutor, "run", run)
    config, effort = config_for(80, part_size=4), Effort(Budget(8), precision=1e-9)
    found = run_score(config, tmp_path / "r", over(2), cast=cast_of(tabular), questions=questions(80), effort=effort)
    assert found.scores.question.nunique() == 80
    assert found.skipped.empty
    assert len(events(found, "failed")) <= 1


def test_a_relative_place_is_that_of_the_driver(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = gradalign.score(
        "builtin:arithmetic", limit=4, rollouts=4, budget=4, part_size=2, device="cpu", out="runs/x", executor="ray", workers=1
    )
    assert run.questions.question.nunique() == 4
    assert len(list((tmp_path / "runs" / "x" / "finished").iterdir())) == 2


def test_what_the_user_can_mend_ends_the_run_in_one_line(tabular, tmp_path):
    cast = cast_with(tabular, Refusing(tabular))
    with pytest.raises(GradalignError, match="no chat template; pass"):
        run_score(config_for(8), tmp_path / "r", over(2), cast=cast, questions=questions(8), effort=SMALL)
    assert status(tmp_path / "r").state == "failed"


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path):
    with pytest.raises(GradalignError, match="unknown built-in model 'builtin:none'"):
        gradalign.score("builtin:arithmetic", student="builtin:none", out=tmp_path / "r", executor="ray", workers=1)


def test_more_workers_than_there_is_room_for_are_refused(tmp_path):
    with pytest.raises(GradalignError, match=r"room for \d+ workers of 1 CPUs and 0 GPUs, not 500"):
        gradalign.score("builtin:arithmetic", out=tmp_path / "r", executor="ray", workers=500, limit=4)


def test_a_run_begun_here_goes_on_over_workers(tabular, tmp_path):
    config = config_for(24, part_size=4)
    whole = run_score(config, tmp_path / "whole", cast=cast_of(tabular), questions=questions(24), effort=Effort(Budget(32)))
    run_score(config, tmp_path / "r", cast=cast_of(tabular), questions=questions(24), effort=Effort(Budget(32)))
    for mark in sorted((tmp_path / "r" / "finished").glob("*.json"))[2:]:
        mark.unlink()
    run_score(config, tmp_path / "r", over(2), cast=cast_of(tabular), questions=questions(24), effort=Effort(Budget(32)))
    assert_same_rows(whole, load_run(tmp_path / "r"), tolerance=0)
