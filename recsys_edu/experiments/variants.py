"""What each choice in LIME is worth on MovieLens-100K, over seeds.

``python -m recsys_edu.experiments variants`` trains the variants below as :mod:`recsys_edu.experiments.quality`
trains its models, among which stand the two that they vary: r = 16 links, weights by a
softmax, LIME-XOR of two blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor

from recsys_edu.attention.pointwise import PointwiseBlock
from recsys_edu.encoders.lime import LimeMHA, LimeXOR
from recsys_edu.encoders.low_rank import LREA, TruncatedMHA
from recsys_edu.experiments.quality import BY_IMPRESSION, Model, low_rank, sweep
from recsys_edu.training import HISTORY


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
    """A block whose tokens read their own key too, with a weight of its own."""

    def update(self, x: Tensor, u: Tensor, read: Tensor) -> Tensor:
        """As in the base, with ``silu(q . k / sqrt(dh)) v`` of x added to ``read``."""
        _, q = self.gate_queries(x)
        k, v = self.keys_values(x)
        scores = (q * k).sum(-1, keepdim=True) * q.shape[-1] ** -0.5
        return super().update(x, u, read + F.silu(scores) * v)


class WithDiagonal(LimeXOR):
    """LIME-XOR under a mask with a diagonal."""

    block = ReadsItself


MHA, XOR = "LIME-MHA", "LIME-XOR"
RANKS = (1, 2, 4, 8, 32, 64)
WIDTHS = (1, 2, 4, 8)  # in which items meet links; unless given it is D

MODELS: dict[str, Model] = {
    **{f"{MHA}, r = {r}": Model(low_rank(LimeMHA, r), HISTORY) for r in RANKS},
    **{
        f"{XOR}, r = {r}": Model(low_rank(LimeXOR, r, layers=2), HISTORY)
        for r in RANKS[:-2]  # of more, a run takes minutes
    },
    **{
        f"truncated MHA, r = {r}": Model(low_rank(TruncatedMHA, r), HISTORY)
        for r in (4, 64)
    },
    "LREA, r = 4": Model(low_rank(LREA, 4), HISTORY),
    **{f"{MHA}, qk = {qk}": Model(low_rank(LimeMHA, qk=qk), HISTORY) for qk in WIDTHS},
    **{
        f"{MHA}, phi = {phi}": Model(low_rank(LimeMHA, phi=phi), HISTORY)
        for phi in ("silu", "identity")
    },
    f"{MHA}, L^C = L": Model(low_rank(Uncontextual), HISTORY),
    f"{XOR}, 1 block": Model(low_rank(LimeXOR, layers=1), HISTORY),
    f"{XOR}, sums": Model(low_rank(Summed, layers=2), HISTORY),
    f"{XOR}, diagonal": Model(low_rank(WithDiagonal, layers=2), HISTORY),
    # Three blocks cannot be trained amortized: compare them with two trained likewise.
    f"{XOR}, by impression": Model(low_rank(LimeXOR, layers=2), BY_IMPRESSION),
    f"{XOR}, 3 blocks, by impression": Model(
        low_rank(LimeXOR, layers=3), BY_IMPRESSION
    ),
}


def runs(names: Sequence[str] = ()) -> Iterator[dict]:
    """One row for each of :data:`MODELS`, see :func:`recsys_edu.experiments.quality.sweep`."""
    return sweep(MODELS, names)
