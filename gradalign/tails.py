"""Distributions told in part: tokens that share what is told of one, the rest as one bucket. Torch in, torch out; knows no server."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_LOG_ROUNDING = math.log(torch.finfo(torch.float32).eps)


def spread_tail(
    told_NV: Float[Tensor, "N V"], student_logprobs_NV: Float[Tensor, "N V"]
) -> tuple[Float[Tensor, "N V"], Float[Tensor, " N"]]:
    """The teacher's log-probabilities, told ones as they are, and its tail: the probability of the tokens that are not told (NaN).

    Let U be the tokens that are not told, tau_U = 1 - sum of the told tau_k the tail, and pi_U the student's probability of U. Nothing is
    known of how the tail lies over U, so U is taken for one token, in both models: tau_j = tau_U pi_j / pi_U for j in U. Then
    tau_j / pi_j = tau_U / pi_U for every j in U, and for any f

        sum_V pi_j f(tau_j / pi_j) = sum_told pi_k f(tau_k / pi_k) + pi_U f(tau_U / pi_U),

    so every f-divergence (reverse and forward KL, Jensen-Shannon) is the one of the two coarse-grained distributions: by the data
    processing inequality a lower bound of the true one, and equal to it where every token is told, or where the true ratio is the same all
    over U. To leave the tail out and renormalise, as is often done with stored top-k logits, would make the told tokens more likely than
    the teacher does (on that bias: Anshumann et al., Sparse Logit Sampling, arXiv 2503.16870).

    A tail is told only as a difference of 1 and a sum in single precision, and not taken for less than its rounding, or than the student's
    pi_U where that is smaller: there a tail of rounding would make tokens that neither model writes differ. Rows that come to more than 1
    are divided by their sum. Student log-probabilities are finite. Tails (N,) are missing (NaN) where every token is told.
    """
    some_N = told_NV.sum(-1).isnan()
    nothing_N = torch.full_like(told_NV[:, 0], torch.nan)
    if not bool(some_N.any()):
        return told_NV, nothing_N
    untold_NV = told_NV.isnan()
    sum_N = told_NV.exp().masked_fill(untold_NV, 0.0).sum(-1, dtype=torch.float64)
    rest_N = student_logprobs_NV.masked_fill(~untold_NV, -torch.inf).logsumexp(-1)
    log_tail_N = (1 - sum_N).clamp_min(0.0).log().maximum(rest_N.double().clamp_max(_LOG_ROUNDING))
    spread_NV = torch.where(untold_NV, student_logprobs_NV + (log_tail_N.to(rest_N) - rest_N)[:, None], told_NV)
    total_N = torch.where(some_N, (sum_N + log_tail_N.exp()).log(), 0.0).to(spread_NV)
    return spread_NV - total_N[:, None], torch.where(some_N, log_tail_N.exp().to(nothing_N), nothing_N)


def spread_shares(
    told_NV: Float[Tensor, "N V"], student_logprobs_NV: Float[Tensor, "N V"], home_V: Int64[Tensor, " V"]
) -> Float[Tensor, "N V"]:
    """What is told, with the probability of a token shared out over those that have their `home` there and are not told (NaN).

    A token and the untold ones at home with it are a bucket of which only the whole is known. It is spread as the student spreads it, as
    the tail is and for the same reason: every f-divergence is that of two coarse-grained distributions, so a lower bound. Where a home is
    not told, its own home is the token's; untold tokens with no home that is told stay so. A token that is at home with itself shares with
    no other's. Student log-probabilities are finite.
    """
    guests = (home_V != torch.arange(len(home_V), device=home_V.device)).nonzero()[:, 0]
    home_NG = home_V[guests].expand(len(told_NV), -1)
    while bool((lost_NG := told_NV.gather(1, home_NG).isnan() & (home_V[home_NG] != home_NG)).any()):
        home_NG = torch.where(lost_NG, home_V[home_NG], home_NG)
    mine_NG = told_NV[:, guests].isnan() & ~told_NV.gather(1, home_NG).isnan()
    guest_NG = student_logprobs_NV[:, guests].masked_fill(~mine_NG, -torch.inf)
    most_NV = student_logprobs_NV.scatter_reduce(1, home_NG, guest_NG, "amax")
    parts_NG = (guest_NG - most_NV.gather(1, home_NG)).exp()
    whole_NV = most_NV + (student_logprobs_NV - most_NV).exp().scatter_add(1, home_NG, parts_NG).log()
    found_NV = told_NV.clone()
    row, place = mine_NG.nonzero(as_tuple=True)
    home, guest = home_NG[row, place], guests[place]
    for member in (home, guest):
        found_NV[row, member] = told_NV[row, home] + (student_logprobs_NV[row, member] - whole_NV[row, home]).to(told_NV)
    return found_NV
