"""How an attempt differs from what was expected, in few words and a small drawing."""

from dataclasses import dataclass

import numpy as np
import torch

_GRID_SIDE = 8  # a larger tensor is not drawn: its first wrong entry is told
_SHOWN_ELEMENTS = 16

Grid = tuple[tuple[tuple[str, bool], ...], ...]
"""Rows of cells: what a cell says and whether it is right."""


@dataclass(frozen=True)
class Mismatch:
    """How an attempt differs: a sentence, and the tensor with its wrong cells marked.

    A wrong cell of the grid reads "got ≠ expected".
    """

    text: str
    grid: Grid = ()


def mismatch(got: object, expected: object, tol: float) -> Mismatch | None:
    """How `got` differs from `expected`, or None where it does not."""
    wanted = _as_array(expected)
    if wanted is not None:
        array = _as_array(got)
        if array is None:
            return Mismatch(f"expected numbers, got {brief(got)}")
        return _array_mismatch(array, wanted, tol)
    if isinstance(expected, dict):
        if not isinstance(got, dict) or got.keys() != expected.keys():
            return Mismatch(f"expected keys {list(expected)}, got {brief(got)}")
        return _first_mismatch(
            [(f"[{key!r}]", got[key], expected[key]) for key in expected], tol
        )
    if isinstance(expected, list | tuple):
        if not isinstance(got, list | tuple) or len(got) != len(expected):
            return Mismatch(f"expected {len(expected)} items, got {brief(got)}")
        pairs = zip(got, expected, strict=True)
        return _first_mismatch(
            [(f"[{i}]", g, e) for i, (g, e) in enumerate(pairs)], tol
        )
    if not (isinstance(got, type(expected)) and got == expected):
        return Mismatch(f"expected {expected!r}, got {brief(got)}")
    return None


def _first_mismatch(
    parts: list[tuple[str, object, object]], tol: float
) -> Mismatch | None:
    for where, got, expected in parts:
        wrong = mismatch(got, expected, tol)
        if wrong is not None:
            return Mismatch(f"at {where}: {wrong.text}", wrong.grid)
    return None


def _as_array(obj: object) -> np.ndarray | None:
    """`obj` as an array of numbers, or None if it is not one."""
    if isinstance(obj, torch.Tensor):
        obj = obj.detach().cpu()
        # numpy has no bfloat16
        return (obj.double() if obj.is_floating_point() else obj).numpy()
    if isinstance(obj, dict | str) or obj is None:
        return None
    try:
        array = np.asarray(obj)
    except (ValueError, TypeError, RuntimeError):  # ragged, or a list of tensors
        return None
    return array if array.dtype.kind in "biuf" else None


def _array_mismatch(
    got: np.ndarray, expected: np.ndarray, tol: float
) -> Mismatch | None:
    if got.shape != expected.shape:
        return Mismatch(f"expected shape {list(expected.shape)}, got {list(got.shape)}")
    if expected.dtype.kind == "f":
        right = np.isclose(got, expected, rtol=tol, atol=tol, equal_nan=True)
    else:
        right = np.asarray(got == expected)
    if right.all():
        return None
    first = np.unravel_index(np.argmin(right), right.shape)
    g, e = _numbers(got[first], expected[first])
    if expected.ndim == 0:
        return Mismatch(f"expected {e}, got {g}")
    return Mismatch(
        f"{right.size - right.sum()} of {right.size} values differ; first at "
        f"{[int(i) for i in first]}: expected {e}, got {g}",
        _grid(got, expected, right),
    )


def _grid(got: np.ndarray, expected: np.ndarray, right: np.ndarray) -> Grid:
    if got.ndim > 2 or max(got.shape) > _GRID_SIDE:
        return ()
    rows = zip(*(np.atleast_2d(a) for a in (got, expected, right)), strict=True)
    return tuple(
        tuple(
            (_numbers(g, g)[0] if ok else " ≠ ".join(_numbers(g, e)), bool(ok))
            for g, e, ok in zip(*row, strict=True)
        )
        for row in rows
    )


def _numbers(got: np.generic, expected: np.generic) -> tuple[str, str]:
    """Both numbers as text, with as many digits as it takes to tell them apart."""
    texts = tuple(
        f"{x:.6g}" if x.dtype.kind == "f" else str(x) for x in (got, expected)
    )
    if texts[0] == texts[1] and got != expected:
        return str(got), str(expected)
    return texts


def brief(obj: object) -> str:
    """A value in few characters: small tensors in full, others by shape."""
    array = _as_array(obj)
    if array is None:
        text = repr(obj)
        return text if len(text) <= 80 else f"{text[:77]}..."
    if array.size > _SHOWN_ELEMENTS:
        return f"{type(obj).__name__} {list(array.shape)}"
    if array.dtype.kind == "f":
        array = array.astype(np.float64).round(4)
    return str(array.tolist())
