"""What each choice in LIME is worth on the next item, over seeds.

Trains the variants below as :mod:`recsys_edu.experiments.quality` trains its models,
among which stand the two that they vary: r = 16 links, weights by a softmax, LIME-XOR
of two blocks. Takes two hours on two cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from recsys_edu.attention.pointwise import PointwiseBlock
from recsys_edu.encoders.lime import LimeMHA, LimeXOR
from recsys_edu.encoders.low_rank import LREA, TruncatedMHA
from recsys_edu.experiments.quality import (
    AMORTIZED,
    BY_REQUEST,
    KEY,
    NONE,
    Model,
    low_rank,
    search,
)


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


__all__ = ["KEY", "MODELS", "asked", "runs"]

MHA, XOR = "LIME-MHA", "LIME-XOR"
RANKS = (1, 2, 4, 8, 32, 64)
WIDTHS = (1, 2, 4, 8)  # in which items meet links; unless given it is D

MODELS: dict[str, Model] = {
    **{f"{MHA}, r = {r}": Model(low_rank(LimeMHA, r), AMORTIZED) for r in RANKS},
    **{
        f"{XOR}, r = {r}": Model(low_rank(LimeXOR, r, layers=2), AMORTIZED)
        for r in RANKS[:-2]  # of more, a run takes minutes
    },
    **{
        f"truncated MHA, r = {r}": Model(low_rank(TruncatedMHA, r), AMORTIZED)
        for r in (4, 64)
    },
    "LREA, r = 4": Model(low_rank(LREA, 4), AMORTIZED),
    **{
        f"{MHA}, qk = {qk}": Model(low_rank(LimeMHA, qk=qk), AMORTIZED) for qk in WIDTHS
    },
    **{
        f"{MHA}, phi = {phi}": Model(low_rank(LimeMHA, phi=phi), AMORTIZED)
        for phi in ("silu", "identity")
    },
    f"{MHA}, L^C = L": Model(low_rank(Uncontextual), AMORTIZED),
    f"{XOR}, 1 block": Model(low_rank(LimeXOR, layers=1), AMORTIZED),
    f"{XOR}, sums": Model(low_rank(Summed, layers=2), AMORTIZED),
    f"{XOR}, diagonal": Model(low_rank(WithDiagonal, layers=2), AMORTIZED),
    # Three blocks cannot be trained amortized: compare them with two trained likewise.
    f"{XOR}, by impression": Model(low_rank(LimeXOR, layers=2), BY_REQUEST),
    f"{XOR}, 3 blocks, by impression": Model(low_rank(LimeXOR, layers=3), BY_REQUEST),
}


def asked(row: Mapping, names: Sequence[str]) -> bool:
    """Whether names of models mean a row."""
    return row["model"] in names


def runs(
    names: Sequence[str] = (), done: Mapping[tuple, dict] = NONE
) -> Iterator[dict]:
    """One row for each of :data:`MODELS` (all, if none is named), as it is trained.

    Args:
        done: key -> row, of runs that need not be made again.

    Raises:
        KeyError: a name that is not among the models.
    """
    if unknown := set(names) - set(MODELS):
        raise KeyError(f"no model {sorted(unknown)}; there are {list(MODELS)}")
    models = {name: MODELS[name] for name in names or MODELS}
    return search(models, "100K", "next item", done)
