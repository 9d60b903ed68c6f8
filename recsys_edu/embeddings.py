"""From row numbers to vectors: embedding tables, bags and the bottom MLP.

The feature values of every user and item live inside the module, so that a batch holds
row numbers only, and a catalogue can be embedded on the item clock with one call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys_edu.batch import History
from recsys_edu.data.interactions import Features
from recsys_edu.positions import Positions


def pairwise_dots(vectors: Tensor) -> Tensor:
    """Dot products of all pairs, [..., F, d] -> [..., F(F-1)/2].

    Pairs (i, j), i < j, in the order (0, 1), (0, 2), ..., (F-2, F-1).
    Source: Naumov et al. 2019 (arXiv 1906.00091), section 2.1.3.
    """
    n = vectors.shape[-2]
    i, j = torch.triu_indices(n, n, offset=1, device=vectors.device)
    return (vectors @ vectors.transpose(-1, -2))[..., i, j]


class FeatureEmbedding(nn.Module):
    """Embeds one side of the ranker, users or items, as S vectors of width d.

    ====================  ==========================================  ======
    feature               vector                                      shape
    ====================  ==========================================  ======
    all dense ones, x     bottom MLP: W2 relu(W1 x + b1) + b2         [d]
    sparse, value v       table[v]                                    [d]
    bag, values v1..vw    mean of table[v] over the v that are not 0  [d]
    ====================  ==========================================  ======

    The dense vector, if the side has dense features, comes first. An all-padding bag is
    the zero vector. For items this is work for the item clock, for users for the
    request clock. Source: Naumov et al. 2019 (arXiv 1906.00091), section 2.1; one
    bottom MLP a side instead of one in all, so that an item's vectors depend on the
    item alone.
    """

    def __init__(self, features: Features, d: int) -> None:
        super().__init__()
        self.d = d
        n_dense = features.dense.shape[1]
        self.dense_mlp = (
            nn.Sequential(nn.Linear(n_dense, d), nn.ReLU(), nn.Linear(d, d))
            if n_dense
            else None
        )
        self.names = tuple(features.sparse)
        for name, values in features.sparse.items():
            # Row 0 is "unknown" for a plain feature and padding for a bag.
            padding = 0 if values.ndim == 2 else None
            table = nn.Embedding(features.cardinality[name], d, padding_idx=padding)
            # Dots of two such vectors start near 0, so rare ids start near "no effect".
            nn.init.normal_(table.weight, std=d**-0.5 / 4)
            if padding is not None:
                nn.init.zeros_(table.weight[padding])
            # An nn.ModuleDict refuses names such as "type", which columns do have.
            self.add_module(f"table_{name}", table)
        columns = {f"value_{name}": values for name, values in features.sparse.items()}
        for name, values in {"dense": features.dense, **columns}.items():
            # Data, not weights: it moves with the module, out of its checkpoints. A
            # copy: what is later done to the log must not change the model.
            self.register_buffer(name, torch.tensor(values), persistent=False)

    @property
    def tables(self) -> dict[str, nn.Embedding]:
        """The table of each sparse feature, by name."""
        return {name: getattr(self, f"table_{name}") for name in self.names}

    @property
    def n_vectors(self) -> int:
        """S, the number of vectors a row becomes."""
        return len(self.names) + (self.dense_mlp is not None)

    @property
    def n_own(self) -> int:
        """Width of :meth:`own`."""
        return self.n_vectors * (self.n_vectors - 1) // 2 + self.d

    def own(self, vectors: Tensor) -> Tensor:
        """What the top MLP reads of this side alone, [..., S, d] -> [..., n_own].

        All pairwise dots of the side's vectors, then the first of them, which is the
        dense one if there is one.
        """
        return torch.cat([pairwise_dots(vectors), vectors[..., 0, :]], dim=-1)

    def forward(self, index: Tensor) -> Tensor:
        """[...] row numbers -> [..., S, d]."""
        vectors = [] if self.dense_mlp is None else [self.dense_mlp(self.dense[index])]
        for name, table in self.tables.items():
            value = self.get_buffer(f"value_{name}")[index]
            vector = table(value)
            if table.padding_idx is not None:  # [..., W, d] -> [..., d]
                count = (value != table.padding_idx).sum(-1, keepdim=True)
                vector = vector.sum(-2) / count.clamp(min=1)
            vectors.append(vector)
        return torch.stack(vectors, dim=-2)


class Embeddings(nn.Module):
    """The vectors a ranker starts from: users, items, and events of a history.

    Args:
        users, items: the feature tables of a log.
        n_actions: how many kinds of action an event can carry.
        d: width of every vector.
        positions: says when an event happened; None for events without a when.
    """

    def __init__(
        self,
        users: Features,
        items: Features,
        n_actions: int,
        d: int,
        *,
        positions: Positions | None = None,
    ) -> None:
        super().__init__()
        self.d = d
        self.users = FeatureEmbedding(users, d)
        self.items = FeatureEmbedding(items, d)
        self.actions = nn.Embedding(n_actions, d)
        nn.init.normal_(self.actions.weight, std=d**-0.5 / 4)
        self.positions = positions

    @property
    def append_only(self) -> bool:
        """Whether old events keep their vectors when new ones arrive."""
        return self.positions is None or self.positions.append_only

    def events(self, history: History, since: int = 0) -> Tensor:
        """What was acted on, what was done, and when, summed: [B, N - since, d].

        Only the events from ``since`` on are embedded; earlier ones may say when.
        """
        items, actions = history.item[:, since:], history.action[:, since:]
        vectors = self.items(items).sum(-2) + self.actions(actions)
        if self.positions is None:
            return vectors
        return vectors + self.positions(history)[:, since:]
