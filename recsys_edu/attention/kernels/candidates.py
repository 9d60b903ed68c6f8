"""The candidate clock's attention: M candidates read the N keys that they share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_edu.attention.kernels.forms import backward_asked, takes_triton
from recsys_edu.attention.pointwise import attend_pointwise
from recsys_edu.attention.softmax import attend

if TYPE_CHECKING:  # its import takes a second or two, and brings Triton along
    from torch.nn.attention.flex_attention import BlockMask

SPAN = 2048
"""Keys that one program of the Triton kernel reads: a constant, as in XOR attention."""


def candidate_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    kind: Literal["softmax", "pointwise"],
    n: Tensor | None = None,
    bias: Tensor | None = None,
    form: Literal["auto", "reference", "sdpa", "flex", "triton"] = "auto",
) -> Tensor:
    """Candidate clock: M queries over N keys of a request, O(M N dh) a head.

    ::

        softmax     softmax(q k^T / sqrt(dh), over the keys of the mask) v
        pointwise   (silu(q k^T / sqrt(dh) + bias), 0 where the mask hides) v / n

    All candidates of a request read the same keys and stand at one position and time,
    so that mask and bias are a row and not a matrix. A query that may read no key reads
    zero.

    ===========  =========================================================  =========
    form         how                                                        kind
    ===========  =========================================================  =========
    "reference"  scores [M, N] written out, in plain PyTorch                both
    "sdpa"       PyTorch's fused kernels                                    softmax
    "flex"       FlexAttention, compiled on a GPU: blocks of 128 keys of    softmax
                 which none is there are not read. Forward only
    "triton"     scores stay on chip, keys are read once. Forward only      pointwise
    "auto"       "sdpa"; or "triton" on a GPU, where nothing asks for a     both
                 gradient, and "reference" elsewhere
    ===========  =========================================================  =========

    FlexAttention has no form of the pointwise kind: its ``score_mod`` changes a score
    before the softmax, and a softmax there is.

    Args:
        q: [B, heads, M, dh].
        k, v: [B, heads, N, dh].
        mask: [B, N] bool, True where there is a key.
        n: [B] the normaliser of the pointwise kind, at least 1.
        bias: broadcasts to [B, heads, 1, N], of the pointwise kind; None for 0.

    Returns:
        [B, heads, M, dh].

    Raises:
        ValueError: there is no such form of this kind, or it cannot run here; ``n`` is
            not given to the pointwise kind, or ``n`` or ``bias`` to the other.
    """
    if kind == "softmax":
        if n is not None or bias is not None:
            raise ValueError("n and bias belong to pointwise attention")
        if form not in ("auto", *_SOFTMAX):
            raise ValueError(f"softmax attention has no form {form!r}")
        return _SOFTMAX["sdpa" if form == "auto" else form](q, k, v, mask)
    if n is None:
        raise ValueError("pointwise attention needs its normaliser n")
    if takes_triton(form, q, k, v, obstacle=backward_asked(q, k, v, bias)):
        from recsys_edu.attention.kernels.candidates_triton import launch

        return launch(q, k, v, mask, n, bias, span=SPAN)
    return attend_pointwise(q, k, v, mask[:, None, None], n.view(-1, 1, 1, 1), bias)


def attend_shared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    n: Tensor | int,
    bias: Tensor | None = None,
) -> Tensor:
    """:func:`attend_pointwise` by a kernel, where one can and all queries are alike.

    Alike are they whose mask, n and bias are a row, as :func:`candidate_attention`
    takes it: candidates of a request, and not those of amortized training.

    Args:
        As of :func:`~recsys_edu.attention.pointwise.attend_pointwise`, with a mask
        [B, 1, 1 or M, N].
    """
    each = (mask, *(x for x in (n, bias) if isinstance(x, Tensor)))
    if not isinstance(n, Tensor) or any(x.shape[2] > 1 for x in each):
        return attend_pointwise(q, k, v, mask, n, bias)
    return candidate_attention(
        q, k, v, mask[:, 0, 0], kind="pointwise", n=n.flatten(), bias=bias
    )


def _softmax_reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    allowed = mask[:, None, None]
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    return weights.masked_fill(~allowed, 0.0) @ v  # a row of no key is NaN till here


def _softmax_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return _zero_where_nothing(attend(q, k, v, mask[:, None, None]), mask)


def _softmax_flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    if backward_asked(q, k, v):
        raise ValueError("form='flex' has no backward pass here: take 'sdpa'")
    if not q.shape[2] or not k.shape[2]:
        return _softmax_reference(q, k, v, mask)
    blocks = block_mask(mask, q.shape[2])
    read = _flex_attention(q.is_cuda)(q, k, v, block_mask=blocks)
    return _zero_where_nothing(read, mask)


_SOFTMAX: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "reference": _softmax_reference,
    "sdpa": _softmax_sdpa,
    "flex": _softmax_flex,
}


def _zero_where_nothing(read: Tensor, mask: Tensor) -> Tensor:
    """Not all of PyTorch's kernels give a query without keys zero; some give NaN."""
    return read.masked_fill(~mask.any(-1)[:, None, None, None], 0.0)


@cache
def _flex_attention(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


def block_mask(mask: Tensor, m: int) -> BlockMask:
    """A mask [B, N] of keys for ``m`` queries, as FlexAttention takes it.

    Made from N numbers a request. ``create_block_mask`` would evaluate all [M, N].
    """
    from torch.nn.attention.flex_attention import BlockMask

    batch, n = mask.shape
    held = F.pad(mask, (0, -n % 128)).unflatten(-1, (-1, 128)).any(-1)  # [B, N / 128]
    order = held.int().argsort(dim=-1, descending=True, stable=True).int()
    rows = -(-m // 128)
    return BlockMask.from_kv_blocks(
        held.sum(-1, dtype=torch.int32)[:, None, None].expand(batch, 1, rows),
        order[:, None, None].expand(batch, 1, rows, -1).contiguous(),
        BLOCK_SIZE=128,
        mask_mod=lambda b, head, query, key: mask[b, key],
        seq_lengths=(m, n),
        compute_q_blocks=False,  # for a backward pass alone
    )
