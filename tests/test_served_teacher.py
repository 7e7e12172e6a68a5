"""Served teachers: what is told at each place, what is not, and runs that say so."""

from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import torch
from chat_families import FAMILIES, codec_of
from fake_endpoint import served

import gradalign
from gradalign.contexts import parse_teacher
from gradalign.models import ChatCodec, LoadedModel, LoadOptions, resolve_model
from gradalign.models.served import ServedCodec, connect, load_served
from gradalign.pipeline import Execution, RunConfig, load_cast
from gradalign.pipeline.openings import opening_notices, takes_system
from gradalign.types import GradalignError, TeacherSpec

SERVER = "server:http://127.0.0.1:8000/v1#org/m"
CPU = LoadOptions(device="cpu", batch_size=4)
SETTINGS = {"limit": 2, "rollouts": 8, "demonstrations": 4, "budget": 8, "batch_size": 4, "device": "cpu"}


def test_teachers_are_named():
    for spec, parts in (
        (SERVER, (SERVER, "none", None)),
        (f"{SERVER}+ctx:answer", (SERVER, "answer", None)),
        (f"ctx:summary@{SERVER}", (None, "summary", SERVER)),
    ):
        teacher = parse_teacher(spec)
        assert (teacher.name, teacher.model, teacher.context, teacher.source) == (spec, *parts)
    found = resolve_model(SERVER)
    assert (found.kind, found.location) == ("server", "http://127.0.0.1:8000/v1")


@pytest.mark.parametrize(
    "spec",
    [
        "server:",
        f"{SERVER}+ctx:",
        f"ctx:answer@{SERVER}",
        "ctx:summary@server:host",
        f"{SERVER}+ctx:answr",
        "model:server:host",
    ],
)
def test_what_is_no_teacher_is_refused(spec):
    with pytest.raises(GradalignError):
        parse_teacher(spec)


def told_by(fake, small, continuations, top_k) -> list[torch.Tensor]:
    model = load_served(fake.name, small, CPU, top_k, teaches=True).language_model
    assert model.vocabulary_size == 356
    states = model.hidden_states(small.codec.prompt("Hello"), continuations)
    assert [len(state) for state in states] == [len(tokens) for tokens in continuations]
    assert len({state.shape[1] for state in states}) == 1
    return [model.logprobs(state) for state in states]


def own(small, continuations) -> list[torch.Tensor]:
    model = small.language_model
    return [model.logprobs(state) for state in model.hidden_states(small.codec.prompt("Hello"), continuations)]


def test_the_most_likely_tokens_and_those_taken_are_told(small):
    continuations = [np.array([20, 30, 40]), np.array([20, 30, 50, 60]), np.array([70])]
    with served(small) as fake:
        found = told_by(fake, small, continuations, 5)
    taken = [[{20, 70}, {30}, {40, 50}], [{20, 70}, {30}, {40, 50}, {60}], [{20, 70}]]
    for told, whole, tokens in zip(found, own(small, continuations), taken, strict=True):
        for row, full, more in zip(told, whole, tokens, strict=True):
            assert {*(~row.isnan()).nonzero()[:, 0].tolist()} == {*full.topk(5).indices.tolist(), *more}
        known = ~told.isnan()
        torch.testing.assert_close(told[known], whole[known])


def test_all_tokens_are_told_if_as_many_are_asked_for(small):
    continuations = [np.array([20, 30, 40])]
    with served(small) as fake:
        found = told_by(fake, small, continuations, 999)
    torch.testing.assert_close(found[0], own(small, continuations)[0])
    assert max(body.get("prompt_logprobs", 0) for body in fake.asked) == 356


def test_padding_is_taken_out(small, monkeypatch):
    with served(small) as fake:
        model = load_served(fake.name, small, CPU, 3, teaches=True).language_model
        assert model._real({1: np.log(0.5), 400: np.log(0.2)}) == {1: pytest.approx(np.log(0.625))}


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ({"lacks": frozenset({"told"})}, "cannot teach"),
        ({"lacks": frozenset({"own"})}, "a prompt's own tokens"),
        ({"most_told": 4}, r"tells fewer than 5 tokens.*max allowed: 4.*--max-logprobs 5, or give a smaller --teacher-top-k"),
        ({"moved": 1}, "another tokenizer"),
    ],
)
def test_what_cannot_teach_is_refused(small, behaviour, says):
    with served(small, **behaviour) as fake, pytest.raises(GradalignError, match=says):
        load_served(fake.name, small, CPU, 5, teaches=True)


def test_what_cannot_teach_may_demonstrate(small):
    with served(small, lacks=frozenset({"told"})) as fake:
        load_served(fake.name, small, CPU, 5, teaches=False)


def test_another_temperature_is_refused(small):
    with pytest.raises(GradalignError, match=r"at temperature 1, not 0\.7"):
        load_served(SERVER, small, LoadOptions(device="cpu", temperature=0.7), 20, teaches=True)


def test_prompts_are_in_the_servers_template(small):
    class Other(ChatCodec):
        def prompt(self, user, system=None):
            return (1, *super().prompt(user, system))

    with served(small) as fake:
        loaded = load_served(fake.name, small, CPU, 5, teaches=True)
        fake.model = LoadedModel(small.language_model, Other(small.codec.tokenizer, "other", small.codec.stop_ids), "")
        assert loaded.codec.prompt("Hello") == (1, *small.codec.prompt("Hello"))
        assert loaded.codec.text([20, 21]) == small.codec.text([20, 21])
        fake.lacks = frozenset({"tokenize"})
        assert loaded.codec.prompt("Hello") == small.codec.prompt("Hello")
    assert loaded.fingerprint == "server: tiny, root /models/tiny, window 512"
    assert loaded.language_model.context_window == 511


def test_thinking_and_system_messages_reach_the_server(small):
    with served(small) as fake:
        endpoint = connect(fake.name, small, 1)
        for thinking in (True, False):
            fake.model = LoadedModel(small.language_model, codec_of(replace(FAMILIES["qwen3"], thinking=not thinking)), "")
            student = codec_of(replace(FAMILIES["qwen3"], thinking=thinking))
            codec = ServedCodec(endpoint, student)
            for system in (None, "a hint"):
                assert codec.prompt("x", system) == student.prompt("x", system)
                assert codec.boundary("x", system) == student.boundary("x", system)
            assert takes_system(codec)
            assert ("</think>" in codec.shown(codec.boundary("x"))) == (not thinking)
            assert not codec.dated()


def test_a_servers_template_that_says_what_day_it_is_is_known(small):
    class Today(ChatCodec):
        def _encoded(self, user, system, **settings):
            return super()._encoded(f"{datetime.now():%d %B %Y}. {user}", system, **settings)

    with served(small) as fake:
        loaded = load_served(fake.name, small, CPU, 5, teaches=True)
        assert opening_notices(small, {"m": loaded}, [TeacherSpec("model:m", model="m")]) == ()
        fake.model = LoadedModel(small.language_model, Today(small.codec.tokenizer, "today", small.codec.stop_ids), "")
        [notice] = opening_notices(small, {"m": loaded}, [TeacherSpec("model:m", model="m")])
    assert "prompts differ from day to day; give --chat-template FILE" in notice


def test_what_is_approximate_is_said(small):
    objectives = ("reverse_kl", "dr_grpo", "jsd:0.5")
    with served(small) as fake:
        teachers = (f"{fake.name}+ctx:answer", f"ctx:correct_demo@{fake.name}")
        config = RunConfig("builtin:small", "builtin:arithmetic", teachers, objectives, teacher_top_k=7)
        notices = load_cast(config, Execution(device="cpu")).notices
        assert len(notices) == 1
        assert "the top 7 tokens are known" in notices[0]
        assert "so reverse_kl, jsd:0.5 are approximate" in notices[0]
        for other in (
            RunConfig("builtin:small", "builtin:arithmetic", teachers, objectives, teacher_top_k=356),
            RunConfig("builtin:small", "builtin:arithmetic", teachers[1:], objectives),
        ):
            assert load_cast(other, Execution(device="cpu")).notices == []


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A run with the student's own weights, loaded here, as another model that teaches."""
    return gradalign.score(
        teachers=["model:builtin:small+ctx:answer"], out=tmp_path_factory.mktemp("runs") / "local", **SETTINGS
    )


def test_told_whole_a_served_teacher_scores_as_a_loaded_one(small, local, tmp_path):
    with served(small) as fake:
        run = gradalign.score(teachers=[f"{fake.name}+ctx:answer"], out=tmp_path / "run", teacher_top_k=500, **SETTINGS)
    for table, columns in (("scores", ["dot", "d_norm2", "advantage"]), ("teachers", ["reverse_kl", "forward_kl", "jsd"])):
        theirs, ours = getattr(local, table), getattr(run, table)
        assert len(theirs) == len(ours) > 0
        np.testing.assert_allclose(ours[columns], theirs[columns], rtol=1e-3, atol=1e-5)
    assert run.teachers["tail"].isna().all()
    assert run.description["provenance"]["notices"] == []


def test_told_in_part_it_has_tails_and_divergences_from_below(small, local, tmp_path):
    with served(small) as fake:
        run = gradalign.score(
            teachers=[f"{fake.name}+ctx:answer"],
            objectives=["reverse_kl", "forward_kl", "minillm:1"],
            teacher_top_k=4,
            out=tmp_path / "run",
            **SETTINGS,
        )
    keys = ["question", "node"]
    both = local.teachers.merge(run.teachers, on=keys, suffixes=("", "_told"))
    assert len(both) == len(local.teachers)
    for name in ("reverse_kl", "forward_kl", "jsd"):
        assert (both[f"{name}_told"] <= both[name] + 1e-5).all()
    assert run.teachers["tail"].between(0, 0.5).all()
    assert (run.teachers["tail"] > 1e-4).any()
    assert "minillm:1 are approximate" in run.description["provenance"]["notices"][0]
    assert np.isfinite(run.scores.loc[run.scores.objective != "minillm:1", "dot"]).all()


def test_a_served_model_samples_demonstrations_and_rollouts(small, tmp_path):
    with served(small) as fake:
        run = gradalign.score(
            teachers=[fake.name, f"ctx:correct_demo@{fake.name}"], teacher_rollouts=2, out=tmp_path / "run", **SETTINGS
        )
    sampled = run.rollouts.groupby(["purpose", "source"]).size()
    assert sampled["teacher", fake.name] == 4
    assert sampled["demonstration", fake.name] == 8
