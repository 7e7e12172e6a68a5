"""Functions that users bring: by `MODULE:FUNCTION`, or by an installed package's entry points; whatever they are for."""

import hashlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from gradalign.types import GradalignError

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def registered(group: str, name: str) -> Callable[..., Any] | None:
    """What an installed package offers under this name in a group of entry points; None if none does."""
    found = entry_points(group=group, name=name)
    return next(iter(found)).load() if found else None


def imported(spec: str) -> Callable[..., Any] | None:
    """The function that `MODULE:FUNCTION` names, from the working folder or wherever Python finds modules; None for other forms."""
    if not _FUNCTION.fullmatch(spec):
        return None
    module, _, function = spec.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        found = getattr(import_module(module), function, None)
    except ImportError as error:
        raise GradalignError(f"function {spec!r}: {error}; give a module that can be imported from here") from error
    except (Exception, SystemExit) as error:  # a module of the user's own can fail in any way
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise GradalignError(f"function {spec!r}: module {module} cannot be imported ({said}); mend it") from error
    finally:
        sys.path.remove(folder)
    if not callable(found):
        raise GradalignError(f"function {spec!r}: module {module} has no function {function}")
    return found


def fingerprints(functions: Iterable[Callable[..., Any]]) -> dict[str, str]:
    """A hash of the file that each function stands in, by `MODULE:FUNCTION`; those without a file are left out."""
    found = {}
    for function in functions:
        file = inspect.getsourcefile(function)
        if file is not None:
            name = f"{function.__module__}:{function.__name__}"
            found[name] = hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()
    return found
