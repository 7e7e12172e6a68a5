"""Gradients of many batches as their mean and spread, and the steps that optimisers make of them. Torch in, torch out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Parameters = list[Tensor]
"""One tensor for each of the model's, in order."""


@dataclass(frozen=True, eq=False)
class Step:
    """The mean gradient over batches, in the direction that parameters are to move, and its variance between batches of `rollouts` each."""

    mean: Parameters
    variance: Parameters
    rollouts: float
    batches: int

    @property
    def norm2(self) -> float:
        """Squared length of the mean gradient, without what the spread of batches adds to it; may be negative."""
        seen = sum(float(each.double().square().sum()) for each in self.mean)
        return seen - sum(float(each.double().sum()) for each in self.variance) / self.batches

    def expected_sign(self, rollouts: int) -> Parameters:
        """Adam's first step over its learning rate, in the mean over batches of so many rollouts: E sign(g) = erf(mean / sqrt(2 Var)).

        Adam (arXiv 1412.6980) divides its first gradient by its own size, so every coordinate moves by the learning rate, or by less in
        the mean where batches disagree about its sign. Batches are taken to be normal, with variance falling as their size.
        """
        spread = 2.0 * self.rollouts / rollouts
        return [
            torch.where(mean == 0, mean, torch.erf(mean / (spread * variance).sqrt()))
            for mean, variance in zip(self.mean, self.variance, strict=True)
        ]


class Moments:
    """Sums over batches from which a `Step` is made; holds two numbers for each parameter."""

    def __init__(self, like: Sequence[Tensor]):
        self.total = [torch.zeros_like(each) for each in like]
        self.square = [torch.zeros_like(each) for each in like]
        self.batches = self.rollouts = 0

    def add(self, gradients: Sequence[Tensor], rollouts: int) -> None:
        """Take a batch's mean gradient over so many rollouts."""
        for total, square, gradient in zip(self.total, self.square, gradients, strict=True):
            total += gradient
            square.addcmul_(gradient, gradient)
        self.batches, self.rollouts = self.batches + 1, self.rollouts + rollouts

    def step(self) -> Step:
        """What the batches come to; at least two of them. The sums are used up."""
        if self.batches < 2:
            raise ValueError("one batch has no spread")
        for total, square in zip(self.total, self.square, strict=True):
            mean = total.div_(self.batches)
            square.div_(self.batches).addcmul_(mean, mean, value=-1).mul_(self.batches / (self.batches - 1)).clamp_min_(0)
        return Step(self.total, self.square, self.rollouts / self.batches, self.batches)
