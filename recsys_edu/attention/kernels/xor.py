"""XOR attention in one pass over the history: r links and N events read each other."""

from __future__ import annotations

from torch import Tensor

from recsys_edu.attention.kernels.forms import Form, takes_triton, tile
from recsys_edu.attention.pointwise import attend_pointwise

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of T tokens, each [B, heads, T, dh]."""

SPAN = 512
"""Events that one program reads. A constant, so that a user's sum is taken in the same
order, and is the same to the bit, whoever else is in the batch."""

LARGEST = 4096
"""Bytes of a tile [r, dh], each side a power of two and at least 16. With larger ones
the backward pass spills registers and asks some cards for more shared memory than they
have."""


def xor_attend(
    links: Heads, events: Heads, mask: Tensor, *, form: Form = "auto"
) -> tuple[Tensor, Tensor]:
    """Request clock: what links read of events, and events of links.

    ::

        links   silu(q_links  k_events^T / sqrt(dh)) v_events / (number of events)
        events  silu(q_events k_links^T  / sqrt(dh)) v_links  / r

    An event that the mask hides is not read, though it reads; the number of events
    counts as 1 where there is none. The reference is two calls of
    :func:`~recsys_edu.attention.pointwise.attend_pointwise`.

    **The kernel.** One program holds the r links of a head on chip and walks ``SPAN``
    events of it. It loads q, k and v of an event once, and with them takes both sides:
    the scores [r, N] and [N, r] never leave the chip. What the links read is summed
    within a span, and the spans' sums [spans, r, dh] are added by a second, small
    kernel, always in the same order. Sums are in float32. Backward is one pass of the
    same kind, with scores computed again. Tensors are read where they lie if q, k and v
    have equal strides, as the chunks of one projection do, and copied first if not.

    **Not in the kernel**: projections, norms, gate and residual, and the silu that
    makes q, k and v. The projections are matrix products, for which there are
    libraries. The silu of q, k and v reads and writes 6 N d numbers in eager PyTorch,
    more than the kernel's own 4 N d: of a whole block it is the next thing to fuse.

    **Bytes** and FLOPs: :func:`~recsys_edu.cost.kernels.xor_attend_cost`.

    Args:
        links: queries, keys and values, each [B, heads, r, dh].
        events: the same, each [B, heads, N, dh].
        mask: [B, N] bool, True where there is an event.
        form: see :mod:`recsys_edu.attention.kernels`. The kernel takes float32,
            bfloat16 and float16, and as many links as fit on chip (:data:`LARGEST`).

    Returns:
        What links read [B, heads, r, dh], and what events read [B, heads, N, dh].

    Raises:
        ValueError: ``form`` is "triton" and it cannot run here.
    """
    r, dh = links[0].shape[-2:]
    size = tile(r) * tile(dh) * links[0].itemsize
    large = f"r = {r} links of dh = {dh} do not fit on chip" if size > LARGEST else ""
    if takes_triton(form, *links, *events, obstacle=large):
        from recsys_edu.attention.kernels.xor_triton import XorAttend

        return XorAttend.apply(*links, *events, mask, SPAN)
    n = mask.sum(-1).clamp(min=1)[:, None, None, None]
    return (
        attend_pointwise(links[0], *events[1:], mask[:, None, None, :], n),
        attend_pointwise(events[0], *links[1:], None, r),
    )
