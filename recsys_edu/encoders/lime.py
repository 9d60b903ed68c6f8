"""LIME: a few learned links stand between a history and the candidates.

::

    item clock        w   = phi(W_q T (W_k L)^T / sqrt(qk))     [r] an item
    request clock     L^C = L + MLP(L, user)                    [r, d]
                      L^P = L^C after it has read the events    [r, d]
    candidate clock   h   = w L^P                               [d]

An item meets the raw links L, which know no user, so its r weights can be looked up; a
history meets the links too, so what it leaves is r vectors, however long it is. What is
left to the candidate clock is a weighted sum, O(r d), whatever N.

Source: LIME (arXiv 2510.18239). It leaves open phi, the projections, how user features
meet the links, positions, and the normalisers of LIME-XOR: those are our choices.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Required, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_edu.attention.kernels import fuse_links
from recsys_edu.attention.pointwise import PointwiseBlock, attend_pointwise
from recsys_edu.attention.precision import in_float32
from recsys_edu.attention.prefixes import attend_prefixes, sum_prefixes
from recsys_edu.attention.softmax import CrossAttention, attend_lse, merge
from recsys_edu.attention.xor import read_links, xor_attention
from recsys_edu.encoders.base import CannotExtend, Events, HistoryEncoder, readable
from recsys_edu.encoders.shared import once_a_prefix
from recsys_edu.tree import TensorTree

PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda scores: scores.softmax(dim=-1),
    "silu": F.silu,
    "identity": lambda scores: scores,
}
"""What makes weights [..., r] of an item's scores: an item needs no other item."""


class Links(TypedDict, total=False):
    """The options of :class:`Lime`, which has their meaning."""

    r: Required[int]
    dropout: float
    qk: int | None
    phi: str


@dataclass(frozen=True)
class LinkCode(TensorTree):
    """What is kept of a history: L^P."""

    links: Tensor  # [B, 1 or M, r, d]


@dataclass(frozen=True)
class LinkRows(TensorTree):
    """Weights of the links that lie in an index: a table, and who asks for which row.

    :meth:`Lime.fuse` takes them in place of weights, so that look-up and sum are one
    kernel on a GPU. Indexing chooses among the candidates and leaves the table whole.
    """

    weights: Tensor  # [I, r] of a float type, or int8
    item: Tensor  # [B, M] int64 rows of it; one of NaN for items it does not hold
    scale: Tensor | None = None  # [I] float32, what a row of an int8 table is times

    def __getitem__(self, index: Any) -> LinkRows:
        """The rows of candidates ``item[index]``."""
        return replace(self, item=self.item[index])


class Lime(HistoryEncoder[Tensor | LinkRows, LinkCode]):
    """What LIME-MHA and LIME-XOR share: the links, the item clock and the sum.

    Args:
        d: width of every vector.
        r: number of links.
        qk: width in which items meet links; None for d. The weights are r numbers
            whatever it is, so only the item clock pays for it.
        phi: a name in :data:`PHI`.

    Raises:
        ValueError: there is no such phi.
    """

    def __init__(
        self,
        d: int,
        *,
        r: int,
        dropout: float = 0.1,
        qk: int | None = None,
        phi: str = "softmax",
    ) -> None:
        super().__init__()
        if phi not in PHI:
            raise ValueError(f"phi is {phi!r}; it must be one of {', '.join(PHI)}")
        self.phi = phi
        self.links = nn.Parameter(torch.randn(r, d))
        self.norm_item = nn.LayerNorm(d)
        self.item_query = nn.Linear(d, qk or d, bias=False)
        self.link_key = nn.Linear(d, qk or d, bias=False)
        # Scores start with variance 1: links that all items weigh alike learn alike.
        nn.init.orthogonal_(self.item_query.weight)
        nn.init.orthogonal_(self.link_key.weight)
        self.link_hidden = nn.Linear(d, d)
        self.user_hidden = nn.Linear(d, d, bias=False)
        self.link_shift = nn.Linear(d, d)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(d)

    def encode_items(self, items: Tensor) -> Tensor:
        """Item clock: [..., d] -> weights of the links [..., r], O(d qk + r qk)."""
        query = self.item_query(self.norm_item(items))
        scores = query @ self.link_key(self.links).T * query.shape[-1] ** -0.5
        return PHI[self.phi](scores)

    def contextual(self, context: Tensor) -> Tensor:
        """Request clock: L^C, user vectors [B, S, d] -> [B, r, d].

        ``L^C = L + W_2 silu(W_1 L + W_u u + b)``, with u the sum of the user's vectors:
        one MLP for all links, told which link it is.
        """
        user = self.user_hidden(context.sum(-2)).unsqueeze(1)
        return self.links + self.link_shift(F.silu(self.link_hidden(self.links) + user))

    @abstractmethod
    def encode_history(self, events: Events, context: Tensor) -> LinkCode:
        """Request clock: L^P and what it takes to go on from it, O(N d^2 + r N d)."""

    def fuse(self, items: Tensor | LinkRows, history: LinkCode) -> Tensor:
        """Candidate clock: weights [..., M, r] of links -> [B, M, d], O(r d).

        Of rows of an index, with one set of links for all candidates, by
        :func:`~recsys_edu.attention.kernels.fuse_links`.
        """
        links = history.links
        if isinstance(items, LinkRows):
            table, row, scale = items.weights, items.item, items.scale
            return fuse_links(table, row, links.squeeze(1), scale=scale)
        if links.shape[1] == 1:  # one set of links for all candidates
            return items @ links.squeeze(1)
        return (items.unsqueeze(-2) @ links).squeeze(-2)


@dataclass(frozen=True)
class SoftmaxLinks(LinkCode):
    """L^P of LIME-MHA, and the running softmax it came from; None of M prefixes."""

    read: Tensor | None  # [B, heads, r, dh]
    lse: Tensor | None  # [B, heads, r]


class LimeMHA(Lime):
    """Links read the history once, by multi-head softmax attention.

    ::

        L^P = norm(L^C + W_o attend(W_q norm(L^C), W_k norm(E), W_v norm(E)))

    A learned start event stands before the others, so that no softmax is over nothing.

    No event reads another and no query changes with the history. So a history can grow,
    exactly, at the price of the new events, by what
    :func:`~recsys_edu.attention.softmax.merge` makes of two parts. And a prefix has
    links of its own: with ``visible`` all candidates share keys, values and scores, and
    what each prefix reads comes of a scan over the events, in
    :func:`~recsys_edu.attention.prefixes.attend_prefixes`.

    Example:
        >>> encoder = LimeMHA(8, r=4)
        >>> weights = encoder.encode_items(torch.rand(3, 8))  # item clock
        >>> events = Events(torch.rand(1, 5, 8), torch.ones(1, 5, dtype=torch.bool))
        >>> code = encoder.encode_history(events, torch.rand(1, 2, 8))  # request clock
        >>> weights.shape, code.links.shape, encoder.fuse(weights, code).shape
        (torch.Size([3, 4]), torch.Size([1, 1, 4, 8]), torch.Size([1, 3, 8]))
    """

    def __init__(self, d: int, *, heads: int = 2, **links: Unpack[Links]) -> None:
        super().__init__(d, **links)
        self.start = nn.Parameter(torch.randn(d) * d**-0.5)
        self.attention = CrossAttention(d, heads)

    @once_a_prefix
    def encode_history(self, events: Events, context: Tensor) -> SoftmaxLinks:
        """Request clock: one attention of r links over 1 + N events."""
        start = self.start.expand(len(events.mask), 1, -1)
        k, v = self.attention.keys_values(
            self.dropout(torch.cat([start, events.vectors], dim=1))
        )
        mask = F.pad(readable(events.mask, events.visible), (1, 0), value=True)
        links = self.contextual(context)
        q = self.attention.queries(links)
        if events.visible is None:
            return self._code(links, *attend_lse(q, k, v, mask.unsqueeze(1)))
        return self._code(links, attend_prefixes(q, k, v, mask.sum(-1)), None)

    def extend(self, code: SoftmaxLinks, new: Events, context: Tensor) -> SoftmaxLinks:
        """Request clock: K new events, O(K d^2 + r K d), whatever came before."""
        links = self.contextual(context)
        k, v = self.attention.keys_values(self.dropout(new.vectors))
        allowed = new.mask[:, None, None, :]
        more = attend_lse(self.attention.queries(links), k, v, allowed)
        return self._code(links, *merge(code.read, code.lse, *more))

    def _code(self, links: Tensor, read: Tensor, lse: Tensor | None) -> SoftmaxLinks:
        update = self.dropout(self.attention.update(read))
        update = update.unflatten(1, (-1, len(self.links)))  # [B, 1 or M, r, d]
        links = self.norm(links.unsqueeze(1) + update)
        return SoftmaxLinks(links, None if lse is None else read, lse)


@dataclass(frozen=True)
class PointwiseLinks(LinkCode):
    """L^P of LIME-XOR, and with one block the sums it came from; not of M prefixes."""

    total: Tensor | None  # [B, heads, r, dh]
    count: Tensor | None  # [B, r] how many events are in them


class LimeXOR(Lime):
    """Links and events read each other through blocks under the XOR mask.

    ::

        [L_i; E_i] = block_i([L_{i-1}; E_{i-1}]),  L_0 = L^C,   L^P = norm(L_l)

    by :func:`~recsys_edu.attention.xor.xor_attention`. In the last block the links
    alone read, since nobody reads its events.

    One block can be extended by new events; one block or two give each prefix of the
    history links of its own; three can do neither. The reason is who has read what when
    a block begins:

    ========  ================================  =================================
    before    the links have read               the events have read
    ========  ================================  =================================
    block 1   the user                          nothing
    block 2   the user, and *all* events        links that know no event
    block 3   the user, and *all* events        links that have read *all* events
    ========  ================================  =================================

    Before block 1, a new event changes nothing that is there: it adds one term to what
    each link reads, so that a sum which was kept goes on. Before block 2 it has changed
    the links, which would have to read every older event again; but the older events
    are as they were, so that a prefix of them can be read by links of its own. Before
    block 3 it has changed the older events too.

    Args:
        layers: number of blocks; the paper has three.
        form: "fused" reads the events once in each block before the last, on a GPU and
            where no ``visible`` asks for prefixes, by
            :func:`~recsys_edu.attention.xor.xor_attention`: with this block and this
            normaliser, not with those of a subclass.
    """

    block: type[PointwiseBlock] = PointwiseBlock
    """What a layer is made of."""

    def __init__(
        self,
        d: int,
        *,
        layers: int = 3,
        heads: int = 2,
        form: Literal["linear", "fused"] = "linear",
        **links: Unpack[Links],
    ) -> None:
        super().__init__(d, **links)
        self.form = form
        self.blocks = nn.ModuleList(
            self.block(d, heads, self.dropout.p) for _ in range(layers)
        )

    @once_a_prefix
    def encode_history(self, events: Events, context: Tensor) -> PointwiseLinks:
        """Request clock: the blocks over links and events.

        Raises:
            ValueError: ``events.visible`` is given and there are three blocks or more.
        """
        if events.visible is not None and len(self.blocks) > 2:
            raise ValueError(
                f"in the third of {len(self.blocks)} XOR blocks, links read events "
                "that have read links of the whole history, which a candidate may not "
                "see: train it one impression a row, or give it two blocks"
            )
        mask = readable(events.mask, events.visible)  # [B, 1 or M, N]
        links, x = self.contextual(context), self.dropout(events.vectors)
        if events.visible is not None:
            return self._encode_prefixes(links, x, mask)
        count = self.normaliser(mask).repeat_interleave(len(self.links), dim=1)
        *blocks, last = self.blocks
        for block in blocks:
            if self.form == "fused":
                links, x = xor_attention(block, links, x, events.mask, form="fused")
                continue
            read = read_links(block, x, links)
            links, x = _read_events(block, links, x, mask.unsqueeze(1), count)[0], read
        links, total = _read_events(last, links, x, mask.unsqueeze(1), count)
        return self._code(links, total, count)

    def _encode_prefixes(
        self, links: Tensor, x: Tensor, mask: Tensor
    ) -> PointwiseLinks:
        """A set of links for each of M prefixes of the events x, by one block or two.

        Before the first block all sets are L^C: one set of queries, whose sums over
        prefixes are a scan. Before the second each set is its own, and reads by itself.

        Args:
            links: [B, r, d] L^C.
            mask: [B, M, N], which events each prefix holds.
        """
        r, sets = len(self.links), mask.shape[1]
        count = self.normaliser(mask).repeat_interleave(r, dim=1)  # [B, M r]
        first, *rest = self.blocks
        u, q = first.gate_queries(links)
        total = sum_prefixes(q, *first.keys_values(x), mask.sum(-1))
        if rest:
            x = read_links(first, x, links)
        links, u = links.repeat(1, sets, 1), u.repeat(1, sets, 1)
        links = first.update(links, u, _mean(total, count, u.dtype))
        for block in rest:
            each = mask.repeat_interleave(r, dim=1).unsqueeze(1)
            links, _ = _read_events(block, links, x, each, count)
        return self._code(links, None, None)

    def extend(
        self, code: PointwiseLinks, new: Events, context: Tensor
    ) -> PointwiseLinks:
        """Request clock: K new events of a one-block model, O(K d^2 + r K d)."""
        if len(self.blocks) > 1:
            raise CannotExtend(
                f"with {len(self.blocks)} XOR blocks a new event changes how the links "
                "read every old one, from the second block on. Encode all of it again"
            )
        mask = new.mask[:, None, None, :]
        count = code.count + self.normaliser(new.mask).unsqueeze(-1)
        x, links = self.dropout(new.vectors), self.contextual(context)
        links, total = _read_events(self.blocks[0], links, x, mask, count, code.total)
        return self._code(links, total, count)

    def normaliser(self, mask: Tensor) -> Tensor:
        """What a link divides its sum by, if it is not 0: how many events it read.

        A subclass may take another number, if all links of a user share it: the
        LayerNorm behind the sum takes out any common factor, but for its eps.
        [..., N] -> [...].
        """
        return mask.sum(-1)

    def _code(
        self, links: Tensor, total: Tensor | None, count: Tensor | None
    ) -> PointwiseLinks:
        links = self.norm(links).unflatten(1, (-1, len(self.links)))
        if len(self.blocks) > 1:
            return PointwiseLinks(links, None, None)
        return PointwiseLinks(links, total, count)


def _read_events(
    block: PointwiseBlock,
    links: Tensor,
    events: Tensor,
    mask: Tensor,
    count: Tensor,
    before: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The links' half of XOR attention, its sum over events apart from its normaliser.

    Args:
        links: [B, Q, d], r or M r of them.
        mask: [B, 1, 1 or Q, N].
        count: [B, 1 or Q] how many events have then been read: the normaliser.
        before: [B, heads, Q, dh] the sum over events that were read before.

    Returns:
        Links [B, Q, d] and the sum [B, heads, Q, dh], in float32 at least: not yet
        divided, it grows with the history.
    """
    u, q = block.gate_queries(links)
    total = attend_pointwise(*in_float32(q, *block.keys_values(events)), mask, 1)
    total = before + total
    return block.update(links, u, _mean(total, count, u.dtype)), total


def _mean(total: Tensor, count: Tensor, dtype: torch.dtype) -> Tensor:
    """A sum [B, heads, Q, dh] over a count [B, 1 or Q] that may be 0."""
    return (total / count.clamp(min=1)[:, None, :, None]).to(dtype)
