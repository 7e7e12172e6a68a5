"""What rollouts bring to a direction other than their reward: returns along paths, weights of pairs. Pure numpy."""

from gradalign.returns.pairs import PairReturns, PairWeights, align_pairs, effective_share, pair_returns, pair_weights
from gradalign.returns.paths import (
    OnSupport,
    OutcomeAlignment,
    Returns,
    align_outcome,
    branch_returns,
    future_returns,
    return_coefficients,
    success_as_returns,
)

__all__ = [
    "OnSupport", "OutcomeAlignment", "PairReturns", "PairWeights", "Returns", "align_outcome", "align_pairs", "branch_returns",
    "effective_share", "future_returns", "pair_returns", "pair_weights", "return_coefficients", "success_as_returns",
]  # fmt: skip
