"""The Triton kernel of the pointwise kind of ``candidate_attention``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys_edu.attention.kernels.forms import one_layout, precision, tile
from recsys_edu.attention.kernels.tiles_triton import load, silu, store

BLOCK_M, BLOCK_N = 64, 32  # queries of a program, and keys on chip at a time


@triton.jit
def pointwise_forward(
    queries, q_b, q_h, q_t,  # [B, h, M, DH] and strides
    keys, values, k_b, k_h, k_t,  # [B, h, N, DH]
    mask,  # [B, N] bool
    bias, bias_b, bias_h, bias_k,  # [B, h, N], or None
    normaliser,  # [B] float32
    sums,  # [spans, B, M, h, DH]
    batch, m, n, heads, spans, blocks, scale,
    DH: tl.constexpr, D: tl.constexpr, SPAN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program for each (request, head, span, block of queries), blocks side by side.

    Neighbours then read the same keys at about the same time: once from memory.
    """
    program = tl.program_id(0)
    block, rest = program % blocks, program // blocks
    span, rest = rest % spans, rest // spans
    head, request = rest % heads, (rest // heads).to(tl.int64)

    query = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q = load(queries + request * q_b + head * q_h, query, q_t, m, DH, D)
    at = request * k_b + head * k_h
    if bias is not None:
        bias += request * bias_b + head * bias_h
    total = tl.zeros((BLOCK_M, D), tl.float32)
    first = span * SPAN
    for start in range(first, tl.minimum(first + SPAN, n), BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        k = load(keys + at, key, k_t, n, DH, D)
        v = load(values + at, key, k_t, n, DH, D)
        real = tl.load(mask + request * n + key, mask=key < n, other=0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if bias is not None:
            scores += tl.load(bias + key * bias_k, mask=key < n, other=0.0)[None, :]
        weights = tl.where(real[None, :] != 0, silu(scores), 0.0).to(v.dtype)
        total = tl.dot(weights, v, total, input_precision=PRECISION)

    total /= tl.load(normaliser + request)
    sums += (((span * batch + request) * m) * heads + head) * DH
    store(sums, query, heads * DH, m, total, DH, D)


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    n: Tensor,
    bias: Tensor | None,
    *,
    span: int,
) -> Tensor:
    """As ``candidate_attention`` of the pointwise kind, without gradients.

    Args:
        span: keys that one program reads.
    """
    (batch, heads, m, dh), keys = q.shape, k.shape[2]
    (q,), (k, v) = one_layout(q), one_layout(k, v)
    spans, blocks = triton.cdiv(keys, span), triton.cdiv(m, BLOCK_M)
    # The sum of one span is the result; more of them are added in float32.
    dtype = q.dtype if spans == 1 else torch.float32
    sums = q.new_empty(spans, batch, m, heads, dh, dtype=dtype)
    if bias is not None:
        bias = bias.expand(batch, heads, 1, keys)[:, :, 0]
    if sums.numel():
        with torch.cuda.device_of(q):
            pointwise_forward[(batch * heads * spans * blocks,)](
                q, *q.stride()[:3],
                k, v, *k.stride()[:3],
                mask.contiguous(),
                bias, *(bias.stride() if bias is not None else (0,) * 3),
                n.float(), sums,
                batch, m, keys, heads, spans, blocks, dh**-0.5,
                DH=dh, D=tile(dh), SPAN=span,
                BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
                PRECISION=precision(q.device),
                num_warps=4, num_stages=2, enable_fp_fusion=True,
            )  # fmt: skip
    read = sums[0] if spans == 1 else sums.sum(0).to(q.dtype)
    return read.transpose(1, 2)
