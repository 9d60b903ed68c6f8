"""From indices to vectors: coded values, embedding tables, bags and the bottom MLP.

Three things that live apart: the **coding** (how raw columns become codes, fitted
once), the **values** (one row of codes a user or item, data that may grow) and the
**weights** (tables and layers). A batch holds indices only; ``embed(values(index))`` is
how the three meet, and a catalogue can be embedded on the item clock with one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from recsys_edu.batch import History
from recsys_edu.data.coding import EventCoding
from recsys_edu.data.features import Features
from recsys_edu.positions import Positions
from recsys_edu.values import Codes, Values


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
    sparse, code v        table[v]                                    [d]
    bag, codes v1..vw     mean of table[v] over the v that are not 0  [d]
    no feature at all     one learned vector for everybody            [d]
    ====================  ==========================================  ======

    The dense vector, if the side has dense features, comes first. Row 0 of a table is
    "unknown", and padding of a bag, where it stays zero; it starts at zero everywhere:
    what was never seen says nothing. An all-padding bag is the zero vector. For items
    this is work for the item clock, for users for the request clock.

    Source: Naumov et al. 2019 (arXiv 1906.00091), section 2.1. Ours differs in two
    points: there is one bottom MLP a side instead of one in all, so that an item's
    vectors depend on the item alone; and it does not end with a ReLU, as Meta's code
    does, so that its output may be negative as the tables' are. Bags are means, where
    their EmbeddingBag sums.

    Args:
        features: the rows that are there at first; sizes of the tables.
        d: width of every vector.
        tables: name of a sparse feature -> a module from codes [...] to [..., d], to
            be used in place of a new ``nn.Embedding``: a sharded one, say. Of a bag,
            its row 0 must be zero and stay zero.

    Attributes:
        values: the rows, :class:`~recsys_edu.values.Values`. No weights: they are not
            in ``state_dict``, and all copies of the module share them.
    """

    def __init__(
        self,
        features: Features,
        d: int,
        *,
        tables: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.d = d
        self.values = Values(features)
        n_dense = features.dense.shape[1]
        self.dense_mlp = (
            nn.Sequential(nn.Linear(n_dense, d), nn.ReLU(), nn.Linear(d, d))
            if n_dense
            else None
        )
        self.names = tuple(features.sparse)
        self.bags = {name for name, v in features.sparse.items() if v.ndim == 2}
        for name, rows in features.cardinality.items():
            table = (tables or {}).get(name)
            if table is None:
                table = _table(rows, d, padding_idx=0 if name in self.bags else None)
            self.add_module(_module_name(name), table)
        nothing = not self.names and self.dense_mlp is None
        self.everybody = nn.Parameter(torch.zeros(d)) if nothing else None

    @property
    def tables(self) -> dict[str, nn.Module]:
        """The table of each sparse feature, by name."""
        return {name: getattr(self, _module_name(name)) for name in self.names}

    @property
    def n_vectors(self) -> int:
        """S, the number of vectors a row becomes."""
        return max(len(self.names) + (self.dense_mlp is not None), 1)

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
        """[...] indices -> [..., S, d]; index -1 is whoever is not known.

        Raises:
            IndexError: an index below -1, or past the last row.
        """
        if self.everybody is not None:
            return self.everybody.expand(*index.shape, 1, self.d)
        return self.embed(self.values(index))

    def embed(self, codes: Codes) -> Tensor:
        """Codes of [...] users or items -> [..., S, d]."""
        vectors = [] if self.dense_mlp is None else [self.dense_mlp(codes.dense)]
        for name, table in self.tables.items():
            code = codes.sparse[name]
            vector = table(code)
            if name in self.bags:  # [..., W, d] -> [..., d]
                count = (code != 0).sum(-1, keepdim=True)
                vector = vector.sum(-2) / count.clamp(min=1)
            vectors.append(vector)
        return torch.stack(vectors, dim=-2)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``to``, ``double`` and the like do: values go where the weights go."""
        super()._apply(fn, recurse)
        self.values = self.values.map(fn)
        return self


def _table(rows: int, d: int, padding_idx: int | None = None) -> nn.Embedding:
    """A table whose dots start near 0, so that rare ids start near "no effect"."""
    table = nn.Embedding(rows, d, padding_idx=padding_idx)
    nn.init.normal_(table.weight, std=d**-0.5 / 4)
    nn.init.zeros_(table.weight[0])
    return table


def _module_name(feature: str) -> str:
    """PyTorch refuses dots, and names that a module has, such as "type"."""
    return f"table_{feature}".replace(".", "\N{MIDDLE DOT}")


class Embeddings(nn.Module):
    """The vectors a ranker starts from: users, items, and events of a history.

    Args:
        users, items: the users and items of a log.
        events: how its actions are coded; None for a ranker that reads no history.
        d: width of every vector.
        positions: says when an event happened; None for events without a when.
        tables: "users.NAME", "items.NAME" or "actions" -> a table to be used in place
            of a new one, see :class:`FeatureEmbedding`.

    Raises:
        ValueError: a table of a feature that there is not.
    """

    def __init__(
        self,
        users: Features,
        items: Features,
        events: EventCoding | None,
        d: int,
        *,
        positions: Positions | None = None,
        tables: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.d = d
        given = dict(tables or {})
        sides = {}
        for side, features in (("users", users), ("items", items)):
            names = {name: f"{side}.{name}" for name in features.sparse}
            sides[side] = {k: given.pop(v) for k, v in names.items() if v in given}
        self.users = FeatureEmbedding(users, d, tables=sides["users"])
        self.items = FeatureEmbedding(items, d, tables=sides["items"])
        self.coding = events
        self.actions = given.pop("actions", None)
        if self.actions is None and events is not None:
            self.actions = _table(1 + len(events.actions), d)
        if given:
            raise ValueError(f"tables {list(given)} are of no feature of this log")
        self.positions = positions

    @property
    def append_only(self) -> bool:
        """Whether old events keep their vectors when new ones arrive."""
        return self.positions is None or self.positions.append_only

    def events(self, history: History, since: int = 0) -> Tensor:
        """What was acted on, what was done, and when, summed: [B, N - since, d].

        Only the events from ``since`` on are embedded; earlier ones may say when.

        Raises:
            ValueError: these embeddings were made for a ranker that reads no history.
        """
        if self.actions is None:
            raise ValueError(
                "these embeddings know no actions: make them with events=log.events"
            )
        items, actions = history.item[:, since:], history.action[:, since:]
        vectors = self.items(items).sum(-2) + self.actions(actions + 1)
        if self.positions is None:
            return vectors
        return vectors + self.positions(history)[:, since:]
