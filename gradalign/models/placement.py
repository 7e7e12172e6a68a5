"""Which model lies on which GPU of this machine. Names in, devices out."""

from collections.abc import Mapping, Sequence

from gradalign.types import GradalignError

STUDENT = "student"
SHARD = "shard"  # in the place of a device: over all of them


def placed(others: Sequence[str], devices: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """The device of `student` and of each other model.

    The student, which samples too, has the first device. The others take the devices after it in turn, in the order of their names, and
    begin again when all are taken; with one device all are on it. What is `given` by name goes before.
    """
    unknown = given.keys() - {STUDENT, *others}
    if unknown:
        raise GradalignError(f"no model {sorted(unknown)[0]!r} to place; choose from {', '.join((STUDENT, *sorted(others)))}")
    free = devices[1:] or devices
    turns = {name: free[turn % len(free)] for turn, name in enumerate(sorted(others))}
    return {STUDENT: devices[0], **turns, **given}


def read_placement(texts: Sequence[str]) -> dict[str, str]:
    """`NAME=DEVICE` as the user writes it, such as `student=cuda:0`, or `NAME=shard`."""
    found: dict[str, str] = {}
    for text in texts:
        name, separator, device = text.rpartition("=")
        if not (name and separator and device):
            raise GradalignError(
                f"placement {text!r} is not understood; write NAME=DEVICE, as student=cuda:0 or Qwen3-8B=cuda:1, or NAME={SHARD}"
            )
        if name in found:
            raise GradalignError(f"{name!r} is placed twice; give --place once for each model")
        found[name] = device
    return found
