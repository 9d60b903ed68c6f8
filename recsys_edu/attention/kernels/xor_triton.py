"""The Triton kernels behind :func:`~recsys_edu.attention.kernels.xor.xor_attend`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys_edu.attention.kernels.forms import one_layout, precision, tile
from recsys_edu.attention.kernels.tiles_triton import load, silu, silu_slope, store

BLOCK_BYTES = 64  # of a column of events on chip: 32 events of 2 bytes, 16 of 4


@triton.jit
def xor_forward(
    q_links, k_links, v_links, links_b, links_h, links_t,  # [B, h, r, DH] and strides
    q_events, k_events, v_events, events_b, events_h, events_t,  # [B, h, N, DH]
    mask,  # [B, N] bool
    sums,  # [B, h, spans, r, DH] float32: what the links read of each span
    read,  # [B, N, h, DH]: what events read of the links
    n, r, heads, spans, scale,
    DH: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    SPAN: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program for each (request, span, head), heads next to each other.

    Neighbours share cache lines, in which the heads of an event lie side by side.
    """
    program = tl.program_id(0)
    head, span = program % heads, program // heads % spans
    request = (program // heads // spans).to(tl.int64)

    at = request * links_b + head * links_h
    link = tl.arange(0, R)
    q_l = load(q_links + at, link, links_t, r, DH, D)  # [R, D]
    k_l = load(k_links + at, link, links_t, r, DH, D)
    v_l = load(v_links + at, link, links_t, r, DH, D)
    total = tl.zeros((R, D), tl.float32)

    at = request * events_b + head * events_h
    read += (request * n * heads + head) * DH
    first = span * SPAN
    for start in range(first, tl.minimum(first + SPAN, n), BLOCK):
        event = start + tl.arange(0, BLOCK)
        q = load(q_events + at, event, events_t, n, DH, D)  # [BLOCK, D]
        k = load(k_events + at, event, events_t, n, DH, D)
        v = load(v_events + at, event, events_t, n, DH, D)
        real = tl.load(mask + request * n + event, mask=event < n, other=0)

        scores = tl.dot(q_l, tl.trans(k), input_precision=PRECISION) * scale
        weights = tl.where(real[None, :] != 0, silu(scores), 0.0).to(v.dtype)  # [R, B]
        total = tl.dot(weights, v, total, input_precision=PRECISION)

        scores = tl.dot(q, tl.trans(k_l), input_precision=PRECISION) * scale
        weights = silu(scores).to(v.dtype)  # [BLOCK, R]
        reads = tl.dot(weights, v_l, input_precision=PRECISION) / r
        store(read, event, heads * DH, n, reads, DH, D)

    sums += ((request * heads + head) * spans + span) * r * DH
    store(sums, link, DH, r, total, DH, D)


@triton.jit
def xor_backward(
    q_links, k_links, v_links, links_b, links_h, links_t,
    q_events, k_events, v_events, events_b, events_h, events_t,
    mask,
    count,  # [B] float32: the normaliser of what links read
    g_links,  # [B, h, r, DH]: the gradient of what links read
    g_events,  # [B, N, h, DH]: the gradient of what events read
    dq_sums, dk_sums, dv_sums,  # [B, h, spans, r, DH] float32
    dq_events, dk_events, dv_events,  # [B, N, h, DH]
    n, r, heads, spans, scale,
    DH: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    SPAN: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The programs of :func:`xor_forward`; both sides of it have their scores [R, B].

    With scores s, weights w = silu(s) and g the gradient of what a side read::

        dw = g v^T,   ds = dw silu'(s) scale,   dq = ds k,   dk = ds^T q,   dv = w^T g
    """
    program = tl.program_id(0)
    head, span = program % heads, program // heads % spans
    request = (program // heads // spans).to(tl.int64)

    at = request * links_b + head * links_h
    link = tl.arange(0, R)
    q_l = load(q_links + at, link, links_t, r, DH, D)
    k_l = load(k_links + at, link, links_t, r, DH, D)
    v_l = load(v_links + at, link, links_t, r, DH, D)
    g_l = load(g_links + (request * heads + head) * r * DH, link, DH, r, DH, D)
    g_l = (g_l / tl.load(count + request)).to(q_l.dtype)
    dq_l = tl.zeros((R, D), tl.float32)
    dk_l = tl.zeros((R, D), tl.float32)
    dv_l = tl.zeros((R, D), tl.float32)

    at = request * events_b + head * events_h
    dense = (request * n * heads + head) * DH
    first = span * SPAN
    for start in range(first, tl.minimum(first + SPAN, n), BLOCK):
        event = start + tl.arange(0, BLOCK)
        q = load(q_events + at, event, events_t, n, DH, D)
        k = load(k_events + at, event, events_t, n, DH, D)
        v = load(v_events + at, event, events_t, n, DH, D)
        g = load(g_events + dense, event, heads * DH, n, DH, D)
        real = tl.load(mask + request * n + event, mask=event < n, other=0)

        # Links read events: q and g are the links', k and v the events'.
        scores = tl.dot(q_l, tl.trans(k), input_precision=PRECISION) * scale
        weights = tl.where(real[None, :] != 0, silu(scores), 0.0).to(v.dtype)
        slope = tl.dot(g_l, tl.trans(v), input_precision=PRECISION) * silu_slope(scores)
        slope = tl.where(real[None, :] != 0, slope * scale, 0.0).to(v.dtype)
        dq_l = tl.dot(slope, k, dq_l, input_precision=PRECISION)
        dk = tl.dot(tl.trans(slope), q_l, input_precision=PRECISION)
        dv = tl.dot(tl.trans(weights), g_l, input_precision=PRECISION)

        # Events read links: q and g are the events', k and v the links'.
        scores = tl.dot(k_l, tl.trans(q), input_precision=PRECISION) * scale
        weights = (silu(scores) / r).to(v.dtype)
        slope = tl.dot(v_l, tl.trans(g), input_precision=PRECISION) * silu_slope(scores)
        slope = (slope * (scale / r)).to(v.dtype)
        dq = tl.dot(tl.trans(slope), k_l, input_precision=PRECISION)
        dk_l = tl.dot(slope, q, dk_l, input_precision=PRECISION)
        dv_l = tl.dot(weights, g, dv_l, input_precision=PRECISION)

        store(dq_events + dense, event, heads * DH, n, dq, DH, D)
        store(dk_events + dense, event, heads * DH, n, dk, DH, D)
        store(dv_events + dense, event, heads * DH, n, dv, DH, D)

    at = ((request * heads + head) * spans + span) * r * DH
    store(dq_sums + at, link, DH, r, dq_l, DH, D)
    store(dk_sums + at, link, DH, r, dk_l, DH, D)
    store(dv_sums + at, link, DH, r, dv_l, DH, D)


@triton.jit
def add_spans(
    sums,  # [B, h, spans, WIDTH] float32
    count,  # [B] float32, or None
    out,  # [B, h, WIDTH]
    heads, spans, blocks,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, SPANS: tl.constexpr,
):  # fmt: skip
    """A program for each (request, head, block of numbers): its spans, in their order.

    What is added is over the count, if there is one. Spans that hold no event of a user
    add zeros, so that its sum is the same however far its history is padded.
    """
    program = tl.program_id(0)
    row, first = (program // blocks).to(tl.int64), program % blocks * BLOCK
    number = first + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, spans, SPANS):
        span = start + tl.arange(0, SPANS)
        at = (row * spans + span)[:, None] * WIDTH + number[None, :]
        inside = (span < spans)[:, None] & (number < WIDTH)[None, :]
        total += tl.sum(tl.load(sums + at, mask=inside, other=0.0), axis=0)
    if count is not None:
        total /= tl.load(count + row // heads)
    tl.store(out + row * WIDTH + number, total, mask=number < WIDTH)


class XorAttend(torch.autograd.Function):
    """q, k, v of links and of events, mask, events a program -> what each kind read."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        """Reads the history once; keeps what it was given, and no scores."""
        *tokens, mask, span = args
        links, events = one_layout(*tokens[:3]), one_layout(*tokens[3:])
        mask = mask.contiguous()
        batch, heads, r, dh = links[0].shape
        spans = triton.cdiv(mask.shape[1], span)
        count = mask.sum(-1, dtype=torch.float32).clamp(min=1)
        sums = links[0].new_empty(batch, heads, spans, r, dh, dtype=torch.float32)
        read = _side_by_side(events[0])
        _launch(xor_forward, span, links, events, mask, sums, read)
        ctx.span = span
        ctx.save_for_backward(*links, *events, mask, count)
        return _added(sums, count, read.dtype), read.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Reads the history once more, and the gradient of what events read."""
        *tokens, mask, count = ctx.saved_tensors
        links, events = tokens[:3], tokens[3:]
        g_links, g_events = grads[0].contiguous(), grads[1].transpose(1, 2).contiguous()
        batch, heads, r, dh = links[0].shape
        shape = 3, batch, heads, triton.cdiv(mask.shape[1], ctx.span), r, dh
        sums = g_links.new_empty(shape, dtype=torch.float32)
        out = [_side_by_side(events[0]) for _ in events]
        grads = count, g_links, g_events
        _launch(xor_backward, ctx.span, links, events, mask, *grads, *sums, *out)
        d_links = _added(sums.flatten(0, 1), None, g_links.dtype).chunk(3)
        return *d_links, *(part.transpose(1, 2) for part in out), None, None


def _side_by_side(like: Tensor) -> Tensor:
    """An empty [B, N, heads, dh]: the heads of a token join without a copy."""
    batch, heads, n, dh = like.shape
    return like.new_empty(batch, n, heads, dh)


def _added(sums: Tensor, count: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Sums of spans [B, heads, spans, r, dh] -> their sum over the count."""
    batch, heads, spans, r, dh = sums.shape
    out = sums.new_empty(batch, heads, r, dh, dtype=dtype)
    block, numbers = 256, r * dh
    blocks = triton.cdiv(numbers, block)
    if out.numel():
        with torch.cuda.device_of(sums):
            add_spans[(batch * heads * blocks,)](
                sums, count, out, heads, spans, blocks,
                WIDTH=numbers, BLOCK=block, SPANS=16, enable_fp_fusion=True,
            )  # fmt: skip
    return out


def _launch(
    kernel: Any, span: int, links: Any, events: Any, mask: Tensor, *results: Tensor
) -> None:
    batch, heads, r, dh = links[0].shape
    n = mask.shape[1]
    spans = triton.cdiv(n, span)
    programs = batch * heads * spans
    if not programs:
        return
    # Two warps, so that few registers hold the same link twice, and many programs side
    # by side instead: found by compiling for an H100, and reading registers and spills.
    with torch.cuda.device_of(mask):  # of several GPUs, the one with the tensors
        kernel[(programs,)](
            *links, *links[0].stride()[:3],
            *events, *events[0].stride()[:3],
            mask, *results, n, r, heads, spans, dh**-0.5,
            DH=dh, D=tile(dh), R=tile(r), SPAN=span,
            BLOCK=BLOCK_BYTES // links[0].itemsize, PRECISION=precision(mask.device),
            num_warps=2, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip
