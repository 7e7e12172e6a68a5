"""Which beginnings prefixes have in common: what is to be computed once. Token ids in, groups out; knows no model."""

from collections.abc import Collection, Iterator

from gradalign.models.shared_prefixes import common_length

Tokens = tuple[int, ...]
_ALIKE = 0.5  # of a prefix is common with another, or the common part is not worth a pass of its own


def trunks_of(bodies: Collection[Tokens]) -> dict[Tokens, Tokens]:
    """For each, the longest of them that begins with it: backwards in order it stands before all that it begins with."""
    trunk_of: dict[Tokens, Tokens] = {}
    trunk: Tokens | None = None
    for body in sorted(set(bodies), reverse=True):
        if trunk is None or trunk[: len(body)] != body:
            trunk = body
        trunk_of[body] = trunk
    return trunk_of


def families(trunks: Collection[Tokens]) -> list[list[Tokens]]:
    """Trunks that begin alike together, the family with the longest first, so that neighbours are of similar length."""
    found: list[list[Tokens]] = []
    for trunk in sorted(trunks):
        if found and _alike(found[-1][0], trunk):
            found[-1].append(trunk)
        else:
            found.append([trunk])
    return sorted(found, key=lambda family: max(map(len, family)), reverse=True)


def passes(trunks: Collection[Tokens], most: int) -> Iterator[list[Tokens]]:
    """Groups to compute together, each of `most` tokens at most where it has more than one: families, and what is alone with its like."""
    grouped = families(trunks)
    alone = [family[0] for family in grouped if len(family) == 1]
    for group in [*(family for family in grouped if len(family) > 1), *([alone] if alone else [])]:
        each = max(map(len, group)) - common_length(group)
        size = max(1, most // max(1, each))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _alike(first: Tokens, other: Tokens) -> bool:
    shared = int(_ALIKE * len(other))
    return shared > 0 and first[:shared] == other[:shared]
