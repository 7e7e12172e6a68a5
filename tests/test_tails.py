"""Distributions told in part: rows are distributions, and divergences those of the coarse-grained ones, never above the true ones."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradalign.tails import spread_shares, spread_tail


@st.composite
def told(draw):
    """Two random models over a vocabulary, float64, and which tokens of the teacher are told: the top k and one more."""
    vocabulary, nodes = draw(st.integers(2, 40)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.1, 2.0, 8.0]))
    student, teacher = (
        torch.log_softmax(torch.from_numpy(random.normal(size=(nodes, vocabulary)) * scale), -1) for _ in range(2)
    )
    count = draw(st.integers(1, vocabulary))
    known = torch.zeros(nodes, vocabulary, dtype=torch.bool)
    known.scatter_(1, teacher.topk(count).indices, True)
    known[torch.arange(nodes), torch.from_numpy(random.integers(vocabulary, size=nodes))] = True
    return student, teacher, known


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p.exp() * (p - q)).sum(-1)


def bucketed(logprobs: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """With all tokens that are not told as one more."""
    rest = logprobs.masked_fill(known, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logprobs.masked_fill(~known, -torch.inf), rest], -1)


def finite_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)


@given(told())
@settings(max_examples=300, deadline=None)
def test_spreading_is_coarse_graining(models):
    student, teacher, known = models
    spread, tail = spread_tail(teacher.masked_fill(~known, torch.nan), student)
    torch.testing.assert_close(spread.exp().sum(-1), torch.ones(len(spread), dtype=spread.dtype))
    true_tail = teacher.exp().masked_fill(known, 0.0).sum(-1)
    complete = known.all(-1)
    assert tail.isnan().tolist() == complete.tolist()
    clear = (true_tail > 1e-5) | complete  # a smaller tail is lost in the rounding of single precision
    torch.testing.assert_close(tail[~complete & clear], true_tail[~complete & clear])
    for p, q, far, near in (
        (student, spread, kl(student, teacher), finite_kl(bucketed(student, known), bucketed(teacher, known))),
        (spread, student, kl(teacher, student), finite_kl(bucketed(teacher, known), bucketed(student, known))),
    ):
        found = kl(p, q)
        torch.testing.assert_close(found[clear], near[clear], atol=1e-9, rtol=1e-9)
        assert (found <= far + 1e-6).all()
        torch.testing.assert_close(found[complete], far[complete])
    told_as_is = known & clear[:, None]
    torch.testing.assert_close(spread[told_as_is], teacher[told_as_is], atol=1e-9, rtol=1e-9)


def test_the_ratio_is_one_over_the_bucket():
    student = torch.log_softmax(torch.tensor([[3.0, 1.0, 0.0, -2.0, -3.0]]), -1)
    teacher = torch.log(torch.tensor([[0.6, 0.3, 0.04, 0.03, 0.03]])).masked_fill(
        torch.tensor([[False, False, True, True, True]]), torch.nan
    )
    spread, tail = spread_tail(teacher, student)
    ratio = (spread - student)[0, 2:]
    torch.testing.assert_close(ratio, ratio[:1].expand(3))
    torch.testing.assert_close(tail, torch.tensor([0.1]))


def test_what_is_told_whole_stays_as_it_is():
    whole = torch.log_softmax(torch.randn(3, 7), -1)
    spread, tail = spread_tail(whole, torch.log_softmax(torch.randn(3, 7), -1))
    assert torch.equal(spread, whole)
    assert tail.isnan().all()


def test_a_sum_above_one_leaves_a_distribution_and_a_tail_of_rounding():
    told = torch.tensor([[np.log(0.9), np.log(0.1) + 1e-4, np.nan, np.nan]], dtype=torch.float32)
    student = torch.full((1, 4), float(np.log(0.25)))
    spread, tail = spread_tail(told, student)
    assert float(spread.exp().sum()) == 1.0
    assert 0 < float(tail) < 1e-6
    assert torch.isfinite(spread).all()


def test_a_tail_below_its_rounding_is_taken_for_the_students_where_that_is_smaller():
    """Taken for its rounding, it would make tokens that neither model ever writes differ by orders of magnitude."""
    student = torch.log_softmax(torch.tensor([[0.0, -1.0, -30.0, -31.0], [0.0, -1.0, -3.0, -4.0]], dtype=torch.float64), -1)
    teacher = torch.log_softmax(torch.tensor([[-1.0, 0.0, -40.0, -40.0]] * 2, dtype=torch.float64), -1)
    spread, tail = spread_tail(teacher.masked_fill(torch.tensor([False, False, True, True]), torch.nan), student)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(tail, torch.stack([student[0, 2:].exp().sum(), torch.tensor(eps, dtype=torch.float64)]))
    torch.testing.assert_close(spread[0, 2:], student[0, 2:], atol=1e-9, rtol=0)
    assert (kl(spread, student) <= kl(teacher, student) + 1e-9).all()
    assert (kl(student, spread) <= kl(student, teacher)).all()


def test_shares_against_their_definition():
    torch.manual_seed(0)
    pi = torch.log_softmax(torch.randn(3, 6, dtype=torch.float64), -1)
    told = torch.log_softmax(torch.randn(3, 6, dtype=torch.float64), -1)
    told[0, [1, 2]] = torch.nan
    told[1, [1, 0]] = torch.nan
    home = torch.tensor([0, 0, 0, 3, 4, 5])
    found = spread_shares(told, pi, home)
    whole = pi[0, :3].exp().sum()
    torch.testing.assert_close(found[0, :3].exp(), told[0, 0].exp() * pi[0, :3].exp() / whole)
    assert torch.equal(found[0, 3:], told[0, 3:])
    assert torch.equal(found[1].isnan(), told[1].isnan())
    assert torch.equal(found[2], told[2])
    above = spread_shares(told, pi, torch.tensor([0, 0, 1, 3, 4, 5]))  # two homes, one above the other
    torch.testing.assert_close(above, found, equal_nan=True)
    assert torch.equal(spread_shares(told, pi, torch.arange(6)).nan_to_num(9.0), told.nan_to_num(9.0))


def test_shares_of_a_bucket_that_the_student_hardly_ever_writes():
    pi = torch.log_softmax(torch.tensor([[0.0, -200.0, -201.0, -199.0]]), -1)
    found = spread_shares(torch.tensor([[0.0, -3.0, torch.nan, torch.nan]]), pi, torch.tensor([0, 1, 1, 1]))
    torch.testing.assert_close(found[0, 1:], -3.0 + torch.log_softmax(pi[0, 1:], -1))
