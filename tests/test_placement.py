"""Which model lies on which GPU."""

import pytest

import gradalign
from gradalign.models import placed, read_placement
from gradalign.types import GradalignError

FOUR = ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]


def test_the_student_has_the_first_and_others_take_turns_on_the_rest():
    assert placed(["b", "a"], FOUR, {}) == {"student": "cuda:0", "a": "cuda:1", "b": "cuda:2"}
    assert placed(["a", "b", "c"], FOUR[:2], {}) == {"student": "cuda:0", "a": "cuda:1", "b": "cuda:1", "c": "cuda:1"}
    assert placed([*"abcd"], FOUR, {})["d"] == "cuda:1"
    assert placed(["a"], ["cpu"], {}) == {"student": "cpu", "a": "cpu"}


def test_what_is_given_goes_before():
    given = read_placement(["student=cuda:3", "owner/a=b=cpu"])
    assert placed(["owner/a=b", "z"], FOUR, given) == {"student": "cuda:3", "owner/a=b": "cpu", "z": "cuda:2"}


@pytest.mark.parametrize("texts", [["student"], ["=cuda:0"], ["student="], ["a=cpu", "a=cuda:0"]])
def test_other_words_are_refused(texts):
    with pytest.raises(GradalignError, match=r"NAME=DEVICE|placed twice"):
        read_placement(texts)


def test_a_model_that_takes_no_part_is_refused_by_name(tmp_path):
    with pytest.raises(GradalignError, match="no model 'other' to place; choose from student, builtin:medium"):
        gradalign.score(
            "builtin:arithmetic", teachers=["model:builtin:medium"], place=("other=cpu",), out=tmp_path / "r", device="cpu"
        )


def test_a_run_with_a_placed_teacher(tmp_path):
    settings = {"teachers": ["model:builtin:medium"], "limit": 4, "rollouts": 8, "budget": 8, "device": "cpu"}
    run = gradalign.score("builtin:arithmetic", place=("builtin:medium=cpu",), out=tmp_path / "r", **settings)
    assert len(run.scores)
