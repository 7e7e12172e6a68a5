"""Attention by torch's CPU kernel: what it gives, where heads of keys are shared, and on a torch whose kernel does not know them."""

import pytest
import torch

from gradalign.models import flash as module
from gradalign.models.flash import flash


def attended(query, key, value, causal, scaling):
    """The slow and obvious definition: states and logarithms of denominators."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1).double() for each in (key, value))
    scores = query.double() @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


@pytest.fixture(params=["shared", "repeated"])
def kernel(request, monkeypatch):
    """Torch's kernel as it is, and as it was: with as many heads of keys as of queries."""
    if request.param == "shared":
        return
    own = module._kernel

    def older(query, key, value, *more):
        assert query.shape[1] == key.shape[1] == value.shape[1]
        return own(query, key, value, *more)

    monkeypatch.setattr(module, "_kernel", older)
    monkeypatch.setattr(module, "_groups_heads", lambda: False)


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2), (9, 3), (5, 1)])
@pytest.mark.parametrize(("causal", "scaling"), [(True, None), (False, 0.3)])
def test_each_head_of_keys_is_read_by_its_heads_of_queries(kernel, heads, causal, scaling):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 70, h, 16).transpose(1, 2) for h in (heads[0], heads[1], heads[1]))
    states, denominators = attended(query, key, value, causal, scaling)
    found = flash(query, key, value, causal=causal, scaling=scaling)
    torch.testing.assert_close(found[0].double(), states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1].double(), denominators, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", ["other heads", "refused"])
def test_a_kernel_that_does_not_share_heads_is_found_out(monkeypatch, wrong):
    """An older kernel reads the key head of the query's own number, which is another's; or it refuses."""
    own = module._kernel

    def older(query, key, value, *more):
        if query.shape[1] != key.shape[1]:
            if wrong == "refused":
                raise RuntimeError("query and key must have the same number of heads")
            key, value = (each.as_strided(query.shape[:2] + each.shape[2:], each.stride()) for each in (key, value))
        return own(query, key, value, *more)

    monkeypatch.setattr(module, "_kernel", older)
    assert not module._groups_heads.__wrapped__()
