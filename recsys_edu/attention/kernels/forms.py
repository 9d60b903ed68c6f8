"""Which form runs: the reference, or a Triton kernel where one can."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

Form = Literal["auto", "reference", "triton"]
"""How a function of this package is computed; what it computes is the same."""

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


_only_references = False


@contextmanager
def only_references() -> Iterator[None]:
    """A stretch in which "auto" is the reference: what watches operations sees them."""
    global _only_references
    before, _only_references = _only_references, True
    try:
        yield
    finally:
        _only_references = before


def takes_triton(form: Form, *tensors: Tensor, obstacle: str = "") -> bool:
    """Whether the Triton kernel is to run on these tensors.

    Args:
        obstacle: what else stands in this kernel's way; empty if nothing does.

    Raises:
        ValueError: ``form`` is "triton" and it cannot run, and why; or there is no such
            form.
    """
    if form not in get_args(Form):
        names = ", ".join(get_args(Form))
        raise ValueError(f"form is {form!r}; it must be one of {names}")
    if form == "reference":
        return False
    if form == "auto" and (not tensors[0].is_cuda or _only_references):
        return False
    obstacle = obstacle or _obstacle(tensors)
    if form == "triton" and obstacle:
        raise ValueError(f"form='triton' cannot run: {obstacle}")
    return not obstacle


def _obstacle(tensors: tuple[Tensor, ...]) -> str:
    types = {tensor.dtype for tensor in tensors}
    if len(types) > 1 or not types <= set(_TYPES):
        names = ", ".join(sorted(map(str, types)))
        return f"it wants one of float32, bfloat16, float16 throughout, not {names}"
    if find_spec("triton") is None:
        return "triton is not installed"
    if interpreted():
        wrong = torch.bfloat16 in types
        return "Triton's interpreter multiplies bfloat16 wrongly" if wrong else ""
    if not all(tensor.is_cuda for tensor in tensors):
        return "not all tensors are on a GPU, and TRITON_INTERPRET=1 is not set"
    return ""


def backward_asked(*tensors: Tensor | None) -> str:
    """The obstacle for a kernel without a backward pass: it would drop a gradient."""
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    ):
        return "it has no backward pass, and a gradient is asked for"
    return ""


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def precision(device: torch.device) -> str:
    """How tensor cores are to multiply float32: three TF32 products, near float32.

    One TF32 product keeps 11 of 24 bits. Cards before Ampere have no TF32 and multiply
    float32 outside their tensor cores; so does the interpreter.
    """
    if interpreted() or torch.cuda.get_device_capability(device) < (8, 0):
        return "ieee"
    return "tf32x3"


def one_layout(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors with equal strides and the last dimension dense; copied if need be.

    The chunks of one projection, split into heads, have such strides as they are.
    """
    first = tensors[0].stride()
    if first[-1] == 1 and all(tensor.stride() == first for tensor in tensors):
        return tensors
    return tuple(tensor.contiguous() for tensor in tensors)


def tile(width: int) -> int:
    """The side of a tile that holds ``width``: a power of two, 16 or more."""
    return max(16, 1 << (width - 1).bit_length())
