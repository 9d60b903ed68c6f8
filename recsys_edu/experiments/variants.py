"""What each choice in LIME is worth on the next item, over three seeds.

Trains the variants below as :mod:`recsys_edu.experiments.quality` trains its models,
each at the learning rate that was chosen there for the model before the comma of its
name. That model's runs of the same seeds are what it is compared with: r = 16 links,
weights by a softmax, LIME-XOR of two blocks. Takes an hour on two cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from recsys_edu.attention.pointwise import PointwiseBlock
from recsys_edu.encoders.hstu import HSTU
from recsys_edu.encoders.lime import LimeMHA, LimeXOR
from recsys_edu.encoders.low_rank import LREA, TruncatedMHA
from recsys_edu.experiments.quality import (
    AMORTIZED,
    BY_REQUEST,
    NONE,
    Model,
    low_rank,
    transformer,
    vary,
)
from recsys_edu.experiments.quality import KEY as KEY


class Uncontextual(LimeMHA):
    """Links that know nothing of the user but the history: L^C = L."""

    def contextual(self, context: Tensor) -> Tensor:
        """[B, S, d] -> L [B, r, d]."""
        return self.links.expand(len(context), -1, -1)


class Summed(LimeXOR):
    """Links that read the sum over events, not the mean: n = 1."""

    def normaliser(self, mask: Tensor) -> Tensor:
        """[..., N] -> ones [...]."""
        return mask.new_ones(mask.shape[:-1], dtype=int)


class ReadsItself(PointwiseBlock):
    """A block whose tokens read their own key too, in one sum with those of the others.

    Sums, not means: the norm behind them takes out what a sum is divided by.
    """

    def forward(
        self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, n: Tensor | int
    ) -> Tensor:
        """Events [B, N, d] that read links and themselves."""
        return super().forward(x, k, v, mask, 1)

    def update(self, x: Tensor, u: Tensor, read: Tensor) -> Tensor:
        """As in the base, with ``silu(q . k / sqrt(dh)) v`` of x added to ``read``."""
        _, q = self.gate_queries(x)
        k, v = self.keys_values(x)
        scores = (q * k).sum(-1, keepdim=True) * q.shape[-1] ** -0.5
        return super().update(x, u, read + F.silu(scores) * v)


class WithDiagonal(Summed):
    """LIME-XOR under a mask with a diagonal."""

    block = ReadsItself


class OnlyLinksRead(PointwiseBlock):
    """A block that leaves events as they are."""

    def forward(self, x: Tensor, *_read: object) -> Tensor:
        """Events [B, N, d], unchanged."""
        return x


class FrozenEvents(LimeXOR):
    """LIME-XOR without the events' half: links read the events again in each block."""

    block = OnlyLinksRead


class Orthogonal(LimeXOR):
    """LIME-XOR whose queries, keys and values start orthogonal, as LIME-MHA's do."""

    def __init__(self, d: int, **options: object) -> None:
        super().__init__(d, **options)
        for block in self.blocks:
            for both in (block.gate_query.weight, block.key_value.weight):
                nn.init.orthogonal_(both.data[:d])
                nn.init.orthogonal_(both.data[d:])


class Untimed(HSTU):
    """HSTU whose bias knows how many events ago, and not how long ago."""

    def __init__(self, d: int, **options: object) -> None:
        super().__init__(d, **options)
        for bias in self.biases:
            bias.time.requires_grad_(False)  # and so it stays 0


MHA, XOR = "LIME-MHA", "LIME-XOR"
RANKS = (1, 2, 4, 8, 32, 64)
WIDTHS = (1, 2, 4)  # in which items meet links; unless given it is D

MODELS: dict[str, Model] = {
    **{f"{MHA}, r = {r}": Model(low_rank(LimeMHA, r), AMORTIZED) for r in RANKS},
    f"{XOR}, 1 block": Model(low_rank(LimeXOR, layers=1), AMORTIZED),
    f"{XOR}, frozen events": Model(low_rank(FrozenEvents, layers=2), AMORTIZED),
    f"{XOR}, orthogonal start": Model(low_rank(Orthogonal, layers=2), AMORTIZED),
    **{
        f"{XOR}, r = {r}": Model(low_rank(LimeXOR, r, layers=2), AMORTIZED)
        for r in (4, 32)  # of more, a run takes minutes
    },
    **{
        f"truncated MHA, r = {r}": Model(low_rank(TruncatedMHA, r), AMORTIZED)
        for r in (4, 64)
    },
    "LREA, r = 4": Model(low_rank(LREA, 4), AMORTIZED),
    f"{MHA}, L^C = L": Model(low_rank(Uncontextual), AMORTIZED),
    **{
        f"{MHA}, phi = {phi}": Model(low_rank(LimeMHA, phi=phi), AMORTIZED)
        for phi in ("silu", "identity")
    },
    **{
        f"{MHA}, qk = {qk}": Model(low_rank(LimeMHA, qk=qk), AMORTIZED) for qk in WIDTHS
    },
    f"{XOR}, sums": Model(low_rank(Summed, layers=2), AMORTIZED),
    f"{XOR}, diagonal": Model(low_rank(WithDiagonal, layers=2), AMORTIZED),
    "HSTU, no time": Model(transformer(Untimed), AMORTIZED),
    # Three blocks cannot be trained amortized: compare them with others trained so.
    f"{MHA}, by request": Model(low_rank(LimeMHA), BY_REQUEST),
    f"{XOR}, by request": Model(low_rank(LimeXOR, layers=2), BY_REQUEST),
    f"{XOR}, 3 blocks, by request": Model(low_rank(LimeXOR, layers=3), BY_REQUEST),
    f"{XOR}, 3 blocks, frozen events, by request": Model(
        low_rank(FrozenEvents, layers=3), BY_REQUEST
    ),
}


def base(name: str) -> str:
    """The model that a variant varies: what stands before the first comma."""
    return name.partition(",")[0]


def runs(
    names: Sequence[str] = (), done: Mapping[tuple, dict] = NONE
) -> Iterator[dict]:
    """Rows of :data:`MODELS`, as :func:`~recsys_edu.experiments.quality.vary` says."""
    return vary(MODELS, base, "100K", "next item", names, done)
