"""Randomness by identity: a seed is a hash of what is sampled, a uniform a hash of seed and step. Never of any order.

So a rollout is the same whatever the batch, the worker, or the moment it was sampled in.
"""

import hashlib

import numpy as np
from jaxtyping import Float64, UInt64


def seed_of(*identity: str | int | bytes) -> int:
    """A 64-bit seed from the parts of an identity, such as (run seed, question, purpose, prefix, replicate)."""
    digest = hashlib.blake2b(digest_size=8)
    for part in identity:
        encoded = part if isinstance(part, bytes) else str(part).encode()
        digest.update(type(part).__name__.encode() + len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "little")


def uniforms(seeds: UInt64[np.ndarray, " B"], steps: UInt64[np.ndarray, " B"]) -> Float64[np.ndarray, " B"]:
    """One uniform in [0, 1) for each (seed, step): two rounds of SplitMix64 (Steele et al., 2014), 53 bits."""
    with np.errstate(over="ignore"):
        mixed = _splitmix(seeds + _splitmix(steps))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix(value: UInt64[np.ndarray, " B"]) -> UInt64[np.ndarray, " B"]:
    with np.errstate(over="ignore"):
        z = value + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
