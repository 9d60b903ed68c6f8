"""What the Triton kernels share: tiles of a matrix, and silu."""

import triton
import triton.language as tl


@triton.jit
def load(start, row, stride, rows, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Rows of a matrix [rows, WIDTH] as a tile [len(row), TILE], zero outside of it."""
    column = tl.arange(0, TILE)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    at = row.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(start + at, mask=inside, other=0.0)


@triton.jit
def store(start, row, stride, rows, values, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """A tile into rows of a matrix [rows, WIDTH]; what lies outside is left out."""
    column = tl.arange(0, TILE)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    at = row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(start + at, values.to(start.dtype.element_ty), mask=inside)


@triton.jit
def silu(x):
    """x sigmoid(x): zero at zero, so that a key of zeros adds nothing to a sum."""
    return x * tl.sigmoid(x)


@triton.jit
def silu_slope(x):
    """The derivative of silu."""
    sigmoid = tl.sigmoid(x)
    return sigmoid * (1 + x * (1 - sigmoid))
