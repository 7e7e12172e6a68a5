"""Bytes of two tokenisations: prefix ranges, edges, runs and readable parts, each against its slow definition."""

import numpy as np
import pytest

from gradalign.spans import Spellings, align, common_runs, edges_of, readable_parts

WORDS = [b"a", b"ab", b"abc", b"b", b"b", None, b"", b"\xff", b"\xffa", b"\xff\xff", b"ba", b"c"]


@pytest.mark.parametrize("start", [b"a", b"ab", b"abc", b"b", b"\xff", b"\xff\xff", b"z"])
def test_tokens_that_go_on_and_that_end(start):
    spellings = Spellings(WORDS)
    beyond = [i for i, word in enumerate(WORDS) if word and word.startswith(start) and len(word) > len(start)]
    assert sorted(spellings.beyond(start).tolist()) == beyond
    assert spellings.exactly(start) == [i for i, word in enumerate(WORDS) if word == start]


def test_how_far_a_token_can_write_a_text():
    spellings = Spellings(WORDS)
    for text in (b"abcab", b"bab", b"cab", b"\xff\xffa"):
        for start in range(len(text)):
            ends = [e for e in range(start + 1, len(text) + 1) if len(spellings.beyond(text[start:e]))]
            assert spellings.reach(text, start) == max(ends, default=start)


def test_words_are_cut_longest_first_or_not_at_all():
    spellings = Spellings(WORDS)
    assert [WORDS[token] for token in spellings.cut(b"abcabba") or []] == [b"abc", b"ab", b"ba"]
    assert spellings.cut(b"abz") is None
    assert spellings.cut(b"") == []


def test_alignment_against_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        student, teacher = (np.unique(np.append(rng.integers(1, 20, 6), [0, 20])) for _ in range(2))
        found = align(student, teacher)
        for t, at in enumerate(student[:-1]):
            before = max(j for j, edge in enumerate(teacher) if edge <= at)
            assert (found.before_T[t], found.written_T[t]) == (before, at - teacher[before])
        assert found.lead_M1.tolist() == [min(edge for edge in student if edge >= place) - place for place in teacher]


def test_runs_lie_between_common_edges():
    student, teacher = np.array([0, 1, 3, 4, 6, 8]), np.array([0, 2, 4, 5, 6, 8])
    runs = common_runs(student, np.array([False, True, False, False, False]), teacher)
    assert runs == [(slice(0, 3), slice(0, 2))]
    assert common_runs(student, np.array([True, True, False, False, True]), teacher) == [
        (slice(0, 3), slice(0, 2)),
        (slice(4, 5), slice(4, 5)),
    ]


def test_parts_join_to_the_bytes():
    data = "né".encode() + b"\xf0\x9f" + "東".encode() + b"\xff!" + "é".encode()[:1]
    parts = list(readable_parts(data))
    assert parts == ["né", b"\xf0", b"\x9f", "東", b"\xff", "!", b"\xc3"]
    assert b"".join(p if isinstance(p, bytes) else p.encode() for p in parts) == data
    assert edges_of([b"ab", b"", b"c"]).tolist() == [0, 2, 2, 3]
