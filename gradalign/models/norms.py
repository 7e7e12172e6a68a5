"""Root-mean-square norms of a model on a GPU by one kernel, where transformers takes half a dozen, each of which reads and writes all: of
a pass over many tokens they take a third of the time.

Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv 1910.07467, eq. 4. Architectures round at different steps and some add 1 to
the weight; which form a model's norms have is asked by trying.
"""

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

try:
    from gradalign.models.norm_kernel import norm_kernel
except ImportError:  # no Triton: no GPU, or not one of its kind
    norm_kernel = None

log = logging.getLogger(__name__)
_AT_ONCE = 4096  # numbers in a program
_WIDEST = 1 << 15  # of a row, which a program holds whole
_ROWS = 8  # to try with


class Form(NamedTuple):
    """Are normalised values rounded before they are weighted, and what is added to the weight?"""

    rounded: bool
    more: float


FORMS = [Form(*form) for form in itertools.product((True, False), (0.0, 1.0))]
_Found = list[tuple[torch.nn.Module, Form]]
_FOUND: WeakKeyDictionary[torch.nn.Module, _Found] = WeakKeyDictionary()


@cache
def kernels_run(device: torch.device) -> bool:
    """Can kernels be made for the device? Asked by trying: beside a GPU that it knows, Triton wants a C compiler."""
    if norm_kernel is None:
        return False
    try:
        return bool(normed(torch.ones(1, 2, device=device), torch.ones(2, device=device), 0.0, FORMS[0]).isfinite().all())
    except Exception as error:  # whatever a compiler, a driver or their absence raises
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        log.warning("Triton makes no kernels for %s (%s); going on without, which takes longer", device, said)
        return False


@contextmanager
def quick_norms(model: torch.nn.Module) -> Iterator[None]:
    """The model's norms by the kernel, for passes through which no gradient flows. Nothing is changed once the block ends."""
    found = [] if norm_kernel is None or torch.is_grad_enabled() else _norms_of(model)
    found = [each for each in found if "forward" not in each[0].__dict__]  # a hook may have come since
    for norm, form in found:
        norm.__dict__["forward"] = partial(_forward, norm, form)
    try:
        yield
    finally:
        for norm, _ in found:
            norm.__dict__.pop("forward", None)


def normed(
    values: Float[Tensor, "*rows width"], weight: Float[Tensor, " width"], epsilon: float, form: Form
) -> Float[Tensor, "*rows width"]:
    """values / sqrt(mean of their squares + epsilon) * weight, by the kernel."""
    values, width = values.contiguous(), values.shape[-1]
    out, padded = torch.empty_like(values), 1 << (width - 1).bit_length()
    rows, together = values.numel() // width, max(1, _AT_ONCE // padded)
    with torch.cuda.device_of(values):  # Triton launches on the device whose turn it is
        norm_kernel[(-(-rows // together),)](  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
            values, weight, out, rows, epsilon,
            WIDTH=width, PADDED=padded, TOGETHER=together, ROUNDED=form.rounded, MORE=form.more,
            num_warps=8 if padded > _AT_ONCE else 4,
        )  # fmt: skip
    return out


def _forward(norm: torch.nn.Module, form: Form, values: Tensor) -> Tensor:
    if torch.is_grad_enabled() or not _takes(norm, values):
        return type(norm).forward(norm, values)
    return normed(values, _weight(norm), _epsilon(norm), form)


def _takes(norm: torch.nn.Module, values: Tensor) -> bool:
    weight = _weight(norm)
    alike = values.device == weight.device and values.dtype == weight.dtype
    return alike and _has_kernels(values.device) and values.numel() > 0


def _weight(norm: torch.nn.Module) -> Tensor:
    return norm.weight  # pyright: ignore[reportReturnType]


def _epsilon(norm: torch.nn.Module) -> float:
    return getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None) or 0.0


def _norms_of(model: torch.nn.Module) -> _Found:
    """The norms that the kernel can take over, each with its form; found once."""
    if model not in _FOUND:
        forms: dict[tuple[type, int], Form | None] = {}
        found: _Found = []
        for norm in model.modules():
            if not _might_be(norm):
                continue
            kind = (type(norm), len(_weight(norm)))
            if kind not in forms:
                forms[kind] = form_of(norm)
            form = forms[kind]
            if form is not None:
                found.append((norm, form))
        _FOUND[model] = found
    return _FOUND[model]


def _might_be(module: torch.nn.Module) -> bool:
    """A norm by its name, with plain parameters on a GPU, that is called by its own class alone."""
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__.endswith("RMSNorm")
        and isinstance(weight, torch.nn.Parameter)
        and weight.ndim == 1
        and len(weight) <= _WIDEST
        and len([*module.parameters()]) == 1
        and "forward" not in module.__dict__
        and _has_kernels(weight.device)
    )


def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and kernels_run(device)


@torch.no_grad()
def form_of(norm: torch.nn.Module) -> Form | None:
    """The form that gives what the norm gives, up to the last digit of some; none if no form does."""
    weight = _weight(norm)
    rng = torch.Generator().manual_seed(0)
    values = (torch.randn(_ROWS, len(weight), generator=rng) * torch.logspace(-2, 2, _ROWS)[:, None]).to(weight)
    try:
        told = type(norm).forward(norm, values)
    except Exception:  # it wants more than values: another kind of norm
        return None
    if not isinstance(told, Tensor) or told.dtype != values.dtype or told.shape != values.shape:
        return None
    found = {form: normed(values, weight, _epsilon(norm), form) for form in FORMS}
    digit = torch.finfo(values.dtype).eps
    apart = {form: float((ours.double() - told.double()).norm()) for form, ours in found.items()}
    best = min(apart, key=lambda form: apart[form])
    near = torch.isclose(found[best].double(), told.double(), rtol=4 * digit, atol=0)
    return best if bool(near.all()) else None
