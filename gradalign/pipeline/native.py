"""The kernel in `numbers.cpp`, compiled for this machine's CPU when it is first wanted: about a second, once in a process."""

import ctypes
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("numbers.cpp")
_FLAGS = ("-O3", "-funroll-loops", "-std=c++17", "-shared", "-fPIC")
_FASTER = (("-march=native", "-fopenmp"), ("-march=native",), ())  # not every compiler knows all of it
_KINDS: dict[str, type] = {
    **dict.fromkeys(("student", "teacher"), ctypes.c_void_p),
    **dict.fromkeys(("student_stride", "teacher_stride"), ctypes.c_int64),
    **dict.fromkeys(("student_factor", "teacher_factor", "beta", "largest"), ctypes.c_float),
    **dict.fromkeys(("shifts", "signs", "sums", "moments", "maxima", "rows"), ctypes.c_void_p),
    **dict.fromkeys(
        ("nodes", "vocabulary", "runs", "length", "group", "kept", "reverse", "forward", "jsd", "alone"), ctypes.c_int64
    ),
}  # in the kernel's order


class _Request(ctypes.Structure):
    _fields_: Sequence[tuple[str, type]] = [*_KINDS.items()]


def native_numbers(**values: Tensor | float | int) -> None:
    """Run the kernel, on as many threads as torch uses, over float32 (shifts int32) tensors on the CPU, whose rows lie whole in memory, and
    numbers, by the names it has."""
    run = compiled()
    assert run is not None
    assert all(value.device.type == "cpu" and value.stride(-1) == 1 for value in values.values() if isinstance(value, Tensor))
    request = _Request(**{name: value.data_ptr() if isinstance(value, Tensor) else value for name, value in values.items()})
    run(ctypes.byref(request), torch.get_num_threads())


def compiler() -> str | None:
    """The C++ compiler that is to make it: the environment's CXX, else the first that is installed."""
    return os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)


@cache
def compiled() -> Callable[..., None] | None:
    """The kernel, None where there is no compiler that makes it."""
    command = compiler()
    if command is None:
        log.info("the pass over the vocabulary is not compiled: there is no C++ compiler")
        return None
    with tempfile.TemporaryDirectory() as place:
        library = Path(place) / "numbers.so"
        for faster in _FASTER:
            made = [*shlex.split(command), *_FLAGS, *faster, "-o", str(library), str(SOURCE)]
            try:
                subprocess.run(made, check=True, capture_output=True, text=True)
                return ctypes.CDLL(str(library)).numbers
            except (OSError, subprocess.CalledProcessError) as error:
                why = getattr(error, "stderr", None) or error
                log.info("the pass over the vocabulary is not compiled with %s: %s", faster, why)
    return None
