"""External teachers one after another: the same rows as together, and one model's layers in memory at a time."""

import gc
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

import gradalign
from gradalign.engines import HFEngine
from gradalign.models import LoadOptions, Turn, crowded, load_model, loading, room, turns
from gradalign.models.cross import cross_tokenizer
from gradalign.pipeline import Execution, RunConfig, load_cast
from gradalign.pipeline.survey import _present_first
from gradalign.types import CompletionRequest, GradalignError

CPU = LoadOptions(device="cpu")
TEACHERS = ("model:builtin:medium", "ctx:correct_demo@model:builtin:large", "model:builtin:large", "ctx:answer")
SETTINGS = {
    "student": "builtin:small",
    "teachers": TEACHERS, "limit": 3, "rollouts": 6, "budget": 6, "demonstrations": 4, "max_tokens": 24, "device": "cpu",
    "objectives": ("reverse_kl", "minillm:1"),
}  # fmt: skip


class Counted:
    """Counts what is read, and how many of the models read live at once, the first (the student) aside."""

    def __init__(self, read):
        self.read, self.names, self.alive, self.peak = read, [], weakref.WeakSet(), 0

    def __call__(self, source, options) -> PreTrainedModel:
        model = self.read(source, options)
        if self.names:
            self.alive.add(model)
        self.names.append(source.name)
        gc.collect()
        self.peak = max(self.peak, len(self.alive))
        return model


@pytest.fixture
def counted(monkeypatch) -> Counted:
    found = Counted(loading.read_weights)
    monkeypatch.setattr(loading, "read_weights", found)
    return found


def frames(run) -> dict[str, pd.DataFrame]:
    return {name: run.frame(name) for name in ("scores", "alignment", "teachers", "rollouts")}


def test_rows_are_the_same_and_one_body_lives_at_a_time(counted, tmp_path):
    apart = gradalign.score("builtin:arithmetic", out=tmp_path / "apart", load="in-turn", **SETTINGS)
    assert counted.peak == 1
    assert {*counted.names} == {"builtin:small", "builtin:medium", "builtin:large"}
    assert len(counted.names) > 3
    counted.peak, counted.alive = 0, weakref.WeakSet()
    read = len(counted.names)
    together = gradalign.score("builtin:arithmetic", out=tmp_path / "together", load="together", **SETTINGS)
    assert len(counted.names) - read == 3
    assert counted.peak == 3
    assert apart.identity == together.identity
    for name, frame in frames(together).items():
        pd.testing.assert_frame_equal(frames(apart)[name], frame)


def test_layers_come_when_they_are_asked_for(counted):
    turn = Turn()
    load_model("builtin:small", CPU)
    one, two = (load_model(name, CPU, turn).language_model for name in ("builtin:medium", "builtin:large"))
    plain = load_model("builtin:medium", CPU).language_model
    prompt, tokens = (3, 4, 5), [np.array([6, 7, 8])]
    assert (turn.loads, turn.holder) == (2, two)
    states = one.hidden_states(prompt, tokens)[0]
    assert (turn.loads, turn.holder) == (3, one)
    two.hidden_states(prompt, tokens)
    torch.testing.assert_close(one.logprobs(states), plain.logprobs(states))
    assert (turn.loads, turn.holder) == (4, two)
    two.hidden_states(prompt, tokens)
    assert turn.loads == 4
    torch.testing.assert_close(one.hidden_states(prompt, tokens)[0], plain.hidden_states(prompt, tokens)[0])


def test_a_survey_begins_with_the_model_that_is_there():
    turn = Turn()
    one, two = (load_model(name, CPU, turn).language_model for name in ("builtin:medium", "builtin:small"))
    student = load_model("builtin:small", CPU).language_model
    assert _present_first([student, one, two, student, one]) == [0, 3, 2, 1, 4]
    one.hidden_states((3, 4), [np.array([5])])
    assert _present_first([student, one, two, student, one]) == [0, 3, 1, 4, 2]


def test_a_survey_begins_with_a_teacher_of_another_tokenizer_that_is_there(small):
    turn = Turn()
    one, two = (cross_tokenizer(small, load_model("builtin:small", CPU, turn)).language_model for _ in range(2))
    assert _present_first([small.language_model, one, two]) == [0, 2, 1]
    one.hidden_states((3, 4), [np.array([5])])
    assert _present_first([small.language_model, one, two]) == [0, 1, 2]


def test_layers_may_wait_in_main_memory_while_there_is_room(monkeypatch, counted):
    """What a GPU would do; that parameters really move is the next test."""
    moved = []
    monkeypatch.setattr(turns, "_move_layers", lambda model, head, device: moved.append(model.config.hidden_size))
    turn = Turn()
    one, two = (load_model(name, CPU, turn).language_model for name in ("builtin:small", "builtin:medium"))
    one._movable = two._movable = True
    sizes = {name: model.config.hidden_size for name, model in (("one", one), ("two", two))}
    read = len(counted.names)
    assert one.model.config.hidden_size == sizes["one"]
    assert len(counted.names) == read + 1  # it had been dropped before it was movable
    assert two.model.config.hidden_size == sizes["two"]
    assert moved == [sizes["two"], sizes["one"], sizes["two"]]
    assert len(counted.names) == read + 1
    monkeypatch.setattr(turns, "free_bytes", lambda device: 0)
    assert one.model.config.hidden_size == sizes["one"]
    assert two._body is None


def test_only_layers_move_and_the_output_layer_stays_with_the_embeddings_it_shares():
    model = load_model("builtin:small", CPU).language_model.model
    moving = {id(parameter) for parameter in turns._layers(model, model.lm_head)}
    assert moving == {id(parameter) for parameter in [*model.model.layers.parameters(), *model.model.norm.parameters()]}
    assert id(model.model.embed_tokens.weight) not in moving


def test_samples_are_the_same_in_turn():
    turn = Turn()
    one, _ = (load_model(name, CPU, turn).language_model for name in ("builtin:medium", "builtin:large"))
    plain = load_model("builtin:medium", CPU).language_model
    asked = [CompletionRequest((3, 4, 5), (1, 2, 3), 8)]
    found, expected = (
        sorted(c.tokens.tolist() for c in HFEngine(model, frozenset({2})).complete(asked)) for model in (one, plain)
    )
    assert found == expected


def load(mode: str, place: tuple[str, ...] = ()):
    config = RunConfig("builtin:small", "builtin:arithmetic", TEACHERS, max_tokens=24)
    return load_cast(config, Execution(device="cpu", engine="hf", load=mode, place=place))


def in_turn(cast) -> set[str]:
    return {name for name, member in cast.others.items() if isinstance(member.model.language_model, turns.InTurn)}


def test_auto_looks_at_what_is_free_and_says_so(monkeypatch):
    assert in_turn(load("auto")) == set()
    monkeypatch.setattr(room, "free_bytes", lambda device: 1 << 20)
    cast = load("auto")
    assert in_turn(cast) == {"builtin:medium", "builtin:large"}
    (said,) = cast.remarks
    assert "GiB together" in said
    assert "one after another" in said
    assert in_turn(load("together")) == set()
    monkeypatch.setattr(room, "free_bytes", lambda device: None)
    assert in_turn(load("auto")) == set()


def test_one_device_under_two_names_has_one_turn():
    cast = load("in-turn", ("builtin:medium=cpu:0", "builtin:large=cpu"))
    one, two = (member.model.language_model.turn for member in cast.others.values())
    assert one is two


def test_sizes_are_known_before_anything_is_read(monkeypatch):
    size = load_model("builtin:medium", CPU).parameters
    assert room.expected_bytes("builtin:medium", CPU) == 4 * size
    assert room.expected_bytes("builtin:medium", LoadOptions(device="cpu", dtype="bfloat16")) == 2 * size
    assert room.expected_bytes("builtin:medium", LoadOptions(device="cpu", quantize="4bit")) == size // 2
    assert room.expected_bytes("nobody/no-such-model", CPU) is None
    monkeypatch.setattr(room, "free_bytes", lambda device: 4 * size)
    assert crowded([("builtin:medium", "cpu")], CPU).keys() == {"cpu"}
    assert crowded([("builtin:medium", "shard")], CPU) == {}
    monkeypatch.setattr(room, "free_bytes", lambda device: 6 * size)
    assert crowded([("builtin:medium", "cpu")], CPU) == {}


def test_free_memory_is_read_or_unknown(monkeypatch, tmp_path):
    file = tmp_path / "meminfo"
    monkeypatch.setattr(room, "_MEMORY", file)
    assert room.free_bytes(torch.device("cpu")) is None
    file.write_text("MemTotal: 10 kB\nMemAvailable:    7 kB\n")
    assert room.free_bytes(torch.device("cpu")) == 7 * 1024


def test_another_word_is_refused():
    with pytest.raises(GradalignError, match="choose auto, together or in-turn"):
        Execution(load="slowly")
