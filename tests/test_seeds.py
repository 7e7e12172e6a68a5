"""Seeds come from identity, uniforms are uniform."""

import numpy as np
from scipy.stats import kstest

from gradalign.seeds import seed_of, uniforms


def test_seeds_tell_identities_apart():
    identities = [(a, b) for a in ("x", "xy", "", "1") for b in ("y", "", "yx", 1)]
    assert len({seed_of(*identity) for identity in identities}) == len(identities)
    assert seed_of("question", 3) == seed_of("question", 3)


def test_seed_is_the_same_in_every_version():
    assert seed_of(0, "arithmetic-train-0001", "base", 0) == 0xB26C1ED312178646


def test_uniforms_are_uniform_across_seeds_and_steps():
    for seeds, steps in ((np.arange(20_000), np.zeros(20_000)), (np.full(20_000, 7), np.arange(20_000))):
        drawn = uniforms(seeds.astype(np.uint64), steps.astype(np.uint64))
        assert kstest(drawn, "uniform").pvalue > 1e-3
    drawn = uniforms(np.arange(20_000, dtype=np.uint64), np.ones(20_000, dtype=np.uint64))
    other = uniforms(np.arange(20_000, dtype=np.uint64), np.zeros(20_000, dtype=np.uint64))
    assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.03
