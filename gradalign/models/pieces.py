"""The text that each token of a rollout adds, so that a rollout can be shown token by token."""

from collections.abc import Sequence

import numpy as np

from gradalign.models.protocol import Codec

_UNFINISHED = "\ufffd"


def token_pieces(codec: Codec, tokens: Sequence[int] | np.ndarray) -> list[str]:
    """One piece of text a token; joined they are `codec.text(tokens)`, so a token without text of its own has an empty piece.

    Where tokens stand for parts of a character, the last of them has it. Text of a token depends on its neighbours in some
    tokenizers, so pieces are what text grows by, decoded from the last token but one that added any.
    """
    whole = codec.text(tokens)
    alone = {int(token): codec.text([int(token)]) for token in np.unique(np.asarray(tokens, dtype=np.int64))}
    pieces = [alone[int(token)] for token in tokens]
    if "".join(pieces) == whole:
        return pieces
    pieces, before, here = [], 0, 0  # what stands from `before` on is decoded again, what stands from `here` on is new
    for end in range(1, len(tokens) + 1):
        old, new = codec.text(tokens[before:here]), codec.text(tokens[before:end])
        if len(new) <= len(old) or new.endswith(_UNFINISHED):
            pieces.append("")
            continue
        pieces.append(new[len(old) :])
        before, here = here, end
    joined = "".join(pieces)
    if whole.startswith(joined) and pieces:
        pieces[-1] += whole[len(joined) :]
    return pieces
