"""The compiled pass over the vocabulary against the plain form it stands for, and when it takes that one's place."""

import itertools
import shutil

import numpy as np
import pytest
import torch

from gradalign.objectives import Objective, parse_objective
from gradalign.pipeline import compiled
from gradalign.pipeline.dense import look
from gradalign.pipeline.vocabulary import Taken, chunk_numbers


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(compiled, "_forms", {})


def logprobs(nodes: int, vocabulary: int) -> list[torch.Tensor]:
    """Of a student and two teachers: tokens that are nearly sure, some whose probability is 0 in single precision, one teacher that says
    what the student says."""
    rng = torch.Generator().manual_seed(nodes)
    found = [torch.randn(nodes, vocabulary, generator=rng) * 2 for _ in range(2)]
    found[0][0, 40] += 30
    found[1][-1, 17] += 14
    found[0][:, 50:60] -= 200
    found[1][:, 55:65] -= 200
    return [torch.log_softmax(score, -1) for score in (*found, found[0])]


def taken(nodes: int, vocabulary: int) -> Taken:
    tokens = np.tile([3, 6, vocabulary - 1, -1], (nodes, 1))
    share, advantage = np.array([0.5, 0.3, 0.2, 0]), np.array([0.1, -0.2, 0.05, 0])
    return Taken(tokens, np.tile(share, (nodes, 1)), np.tile(advantage, (nodes, 1)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("vocabulary", "specs"),
    [
        (20_000, ("reverse_kl", "forward_kl", "jsd:0.3", "sampled_kl")),
        (5003, ("reverse_kl@forward_kl*1", "dr_grpo", "pbsd:0.1", "minillm:1")),
        (100, ("jsd:0.9",)),
    ],
)
def test_the_compiled_form_gives_the_numbers_of_the_plain_form(monkeypatch, vocabulary, specs):
    objectives, threads = [parse_objective(spec) for spec in specs], torch.get_num_threads()
    for nodes, count in ((5, threads), (3, threads), (1, threads), (4, 1), (2, threads)):
        student, *teachers = logprobs(nodes, vocabulary)
        given = (student, teachers, taken(nodes, vocabulary), objectives, 4)
        monkeypatch.setattr(compiled, "WORTH", np.inf)
        expected, expected_directions = chunk_numbers(*given)
        monkeypatch.setattr(compiled, "WORTH", 0)
        torch.set_num_threads(count)
        found, directions = chunk_numbers(*given)
        torch.set_num_threads(threads)
        torch.testing.assert_close(found.pop("ratio2_CN"), expected.pop("ratio2_CN"), rtol=1e-4, atol=1e-3)
        assert (found["kept_NK"][:, -4:] == expected["kept_NK"][:, -4:]).all()
        strongest = found["direction_CONK"].abs(), expected["direction_CONK"].abs()
        torch.testing.assert_close(strongest[0].amax(-1), strongest[1].amax(-1), rtol=1e-4, atol=2e-5)
        same = found["kept_NK"] == expected["kept_NK"]  # of tokens that are equally strong any may be kept
        assert same.double().mean() > 0.8
        for name, value in expected.items():
            mask = same if name.endswith("K") else torch.tensor(True)
            torch.testing.assert_close(
                torch.where(mask, found[name].double(), 0), torch.where(mask, value.double(), 0), rtol=1e-4, atol=2e-5, msg=name
            )
        for ours, plain in zip(itertools.chain(*directions), itertools.chain(*expected_directions), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)
    (form,) = compiled._forms.values()
    assert form._fast is not form._plain


def test_it_is_compiled_once_the_plain_form_has_done_enough(monkeypatch):
    asked = []
    monkeypatch.setattr(compiled, "_compiled", lambda plain, arrays: asked.append(len(arrays)) or plain)
    monkeypatch.setattr(compiled, "WORTH", 3 * 90 * 10)  # three arrays, 10 nodes
    objectives = [parse_objective("reverse_kl")]
    student, teacher, _ = logprobs(4, 90)
    for made in (0, 0, 1, 1):
        compiled.fastest_look(objectives, student, teacher, student.argmax(-1))
        assert len(asked) == made
    compiled.fastest_look([parse_objective("forward_kl")], student, teacher, student.argmax(-1))
    assert len(asked) == 1


def picky(signals):
    """A user's function that looks at numbers, which no graph can."""
    return signals.log_ratio if float(signals.student_logprobs.max()) < 0 else signals.student_logprobs


@pytest.mark.parametrize("broken", [False, True])
def test_what_cannot_be_compiled_stays_plain(monkeypatch, broken):
    monkeypatch.setattr(compiled, "WORTH", 0)
    tries = []

    def no_compiler(*_, **__):
        tries.append(1)
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    objective = parse_objective("forward_kl") if broken else Objective("picky", picky, function=picky)
    student, teacher, _ = logprobs(4, 90)
    for _ in range(2):
        found = compiled.fastest_look([objective], student, teacher, student.argmax(-1), student.exp(), student.exp())
        expected = look([objective], student, teacher, student.argmax(-1), student.exp(), student.exp())
        torch.testing.assert_close(found.moved[0].direction_NV, expected.moved[0].direction_NV)
    assert len(tries) == broken
