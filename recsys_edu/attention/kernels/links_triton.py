"""The Triton kernel behind :func:`~recsys_edu.attention.kernels.links.fuse_links`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys_edu.attention.kernels.forms import precision, tile
from recsys_edu.attention.kernels.tiles_triton import load, store

BLOCK = 128  # candidates of a program


@triton.jit
def fuse_links_kernel(
    weights,  # [I, WIDTH]
    scale,  # [I] float32, or None
    items,  # [B, M] int64
    links,  # [B, WIDTH, DIM]
    out,  # [B, M, DIM]
    m, rows, blocks,
    WIDTH: tl.constexpr, R: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program for each (request, block of candidates)."""
    program = tl.program_id(0)
    request = (program // blocks).to(tl.int64)
    candidate = program % blocks * BLOCK + tl.arange(0, BLOCK)
    # A place past the last candidate asks for a row past the last item: zeros.
    item = tl.load(items + request * m + candidate, mask=candidate < m, other=rows)
    row = load(weights, item, WIDTH, rows, WIDTH, R)  # [BLOCK, R], gathered

    link = tl.arange(0, R)
    links = load(links + request * WIDTH * DIM, link, DIM, WIDTH, DIM, D)  # [R, D]
    fused = tl.dot(row.to(links.dtype), links, input_precision=PRECISION)
    if scale is not None:
        fused *= tl.load(scale + item, mask=item < rows, other=0.0)[:, None]
    store(out + request * m * DIM, candidate, DIM, m, fused, DIM, D)


def launch(
    weights: Tensor, items: Tensor, links: Tensor, scale: Tensor | None
) -> Tensor:
    """As :func:`~recsys_edu.attention.kernels.links.fuse_links`."""
    (batch, m), (rows, r), d = items.shape, weights.shape, links.shape[-1]
    out = links.new_empty(batch, m, d)
    blocks = triton.cdiv(m, BLOCK)
    if out.numel():
        with torch.cuda.device_of(links):
            fuse_links_kernel[(batch * blocks,)](
                weights.contiguous(), scale,
                items.contiguous(), links.contiguous(), out,
                m, rows, blocks,
                WIDTH=r, R=tile(r), DIM=d, D=tile(d),
                BLOCK=BLOCK, PRECISION=precision(links.device),
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
    return out
