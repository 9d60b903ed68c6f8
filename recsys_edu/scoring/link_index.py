"""LIME's link index: what a catalogue brings to the links, computed offline.

An item's weights of the r links know no user and no history, so they can be computed
when the catalogue changes and looked up when it is ranked. The index is a table of r
numbers an item in one file, mapped into memory when it is opened: only rows that are
read are loaded.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from recsys_edu.data import UNKNOWN
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import FeatureEmbedding
from recsys_edu.encoders.lime import Lime, LinkRows
from recsys_edu.files import written_whole
from recsys_edu.progress import progress
from recsys_edu.scoring.versions import Seen, tensors_of, version_of

BLOCK = 65_536
"""Rows of features that are hashed at a time."""


@dataclass(frozen=True)
class _Table:
    """The rows of one moment: row 0 is the unknown item's, row 1 + i item i's.

    There may be more rows than items, for those to come. The last one stays NaN: it is
    what an index past the items reads.
    """

    weights: Tensor  # [2 + n or more, r]
    scale: Tensor | None  # as many, float32, for int8; else None
    n: int  # items, those among them that have no weights
    version: str

    def row(self, item: Tensor) -> Tensor:
        """[...] indices on the table's device -> [...] the rows that they read."""
        here = (item >= UNKNOWN) & (item < self.n)
        return torch.where(here, item + 1, len(self.weights) - 1)

    def of(self, item: Tensor) -> Tensor:
        """[...] indices on the table's device -> [..., r], NaN where there is none."""
        row = self.row(item)
        weights = F.embedding(row, self.weights)  # several times as fast as indexing
        if self.scale is None:
            return weights
        return weights * self.scale[row].unsqueeze(-1)

    def write(self, item: Tensor, weights: Tensor) -> None:
        """Rows [K, r] of items [K]; what marks a row as there is written last."""
        row, weights = item.to(self.weights.device) + 1, weights.to(self.weights.device)
        if self.scale is None:
            weights = weights.to(self.weights.dtype)
            self.weights[row, 1:] = weights[:, 1:]
            self.weights[row, 0] = weights[:, 0]
            return
        scale = weights.abs().amax(-1).float() / 127
        tiny = torch.finfo(torch.float32).tiny  # a row of zeros is zeros
        steps = (weights / scale.clamp(min=tiny).unsqueeze(-1)).round()
        self.weights[row] = steps.to(torch.int8)
        self.scale[row] = scale

    def forget(self, row: Tensor | slice) -> None:
        """Marks rows as holding no item."""
        if self.scale is None:
            self.weights[row, 0] = float("nan")
        else:
            self.scale[row] = float("nan")

    def with_items(self, n: int, version: str) -> _Table:
        """This table with n items; those that are new have no weights yet.

        It is the same memory where there is room, else a copy with twice the room.
        """
        longer = replace(self, n=n, version=version)
        if n + 2 > len(self.weights):
            size = n + 2 if self.n == 0 else max(n + 2, 2 * len(self.weights))
            scale = None if self.scale is None else _copied(self.scale, size)
            longer = replace(longer, weights=_copied(self.weights, size), scale=scale)
            longer.forget(slice(size - 1, None))
        longer.forget(slice(1 + self.n, 1 + n))
        return longer

    def trimmed(self, device: torch.device | str) -> _Table:
        """A copy on a device, with no room for more."""
        weights, scale = (
            None if rows is None else rows[: self.n + 2].to(device, copy=True)
            for rows in (self.weights, self.scale)
        )
        table = replace(self, weights=weights, scale=scale)
        table.forget(slice(self.n + 1, None))
        return table


def _copied(rows: Tensor, size: int) -> Tensor:
    longer = rows.new_zeros(size, *rows.shape[1:])
    longer[: len(rows)] = rows
    return longer


class _Look:
    """What was seen of a model's item side; nothing of it is kept alive."""

    def __init__(self, model: DLRM) -> None:
        self.of = self._named(model)
        self.seen = Seen.at(tensors_of(*_item_side(model)))

    def still(self, model: DLRM) -> bool:
        """Whether nothing was seen to change since."""
        if self.of != self._named(model):
            return False
        return self.seen.still(tensors_of(*_item_side(model)))

    @staticmethod
    def _named(model: DLRM) -> tuple:
        items, encoder = _item_side(model)
        return weakref.ref(items.values), items.values.version, encoder.phi


class LinkIndex:
    """Link weights phi(T L^t) by item index: ``index[item]``, [...] -> [..., r].

    ========  ==============  ======================================================
    type      bytes an item   a weight is
    ========  ==============  ======================================================
    a float   2, 4 or 8 r     itself, rounded
    int8      r + 4           an integer in -127..127 times its row's scale, so off by
                              at most max |row| / 254
    ========  ==============  ======================================================

    Index -1 is the unknown item, which every index holds. A row that holds no item has
    NaN as its first weight, or as its scale. The index is keyed by all that its rows
    were computed from, and refuses a model whose weights, or whose features of these
    items, are others; features of later items are nothing to it. :meth:`build` or
    :meth:`open` one.

    **Threads** may look up while others add and remove. A reader holds the table of one
    moment; new rows are written behind its end, and a row within it that had no item
    gets its first weight, or its scale, last. To put other weights into service, build
    another index and replace the one reference that model and index are read from.

    Args:
        weights: [1 + I + 1, r] the table: the unknown item, I items, a row of NaN.
        scale: [1 + I + 1] float32 for int8, NaN in the last row; else None.
        version: of what the rows were computed from, see :func:`item_version`.

    Example:
        >>> from recsys_edu.data.synthetic import planted_world
        >>> from recsys_edu.embeddings import Embeddings
        >>> from recsys_edu.encoders.lime import LimeMHA
        >>> log = planted_world(seed=0, n_impressions=99, n_users=9, n_items=9).log
        >>> embeddings = Embeddings(log.users, log.items, log.events, 8)
        >>> index = LinkIndex.build(DLRM(embeddings, LimeMHA(8, r=4)).eval())
        >>> len(index), index[torch.tensor([[3, -1]])].shape
        (9, torch.Size([1, 2, 4]))
    """

    def __init__(self, weights: Tensor, scale: Tensor | None, version: str) -> None:
        self._table = _Table(weights, scale, len(weights) - 2, version)
        self._lock = threading.RLock()  # of who writes
        # What was seen of each model that it was held to, and of how many items.
        self._checked: weakref.WeakKeyDictionary[DLRM, tuple[_Look, int]]
        self._checked = weakref.WeakKeyDictionary()
        self._features: Any = None  # a hash of the items' features, which can go on

    @classmethod
    @torch.inference_mode(False)
    def build(
        cls,
        model: DLRM,
        items: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        batch_size: int = 65_536,
    ) -> LinkIndex:
        """Item clock: the rows of a catalogue in batches, with a progress bar.

        Args:
            model: a ranker with a LIME encoder, in eval mode.
            items: [K] item indices; None for all that the model can embed.
            dtype: of the table, a float type or torch.int8; None for the model's.

        Raises:
            TypeError: the ranker has no links.
            ValueError: the weights change meanwhile; the model is in training mode.
        """
        look, version = _Look(model), item_version(model, 0)
        links, unknown = model.encoder.links, torch.tensor([UNKNOWN])
        weights = torch.zeros(2, len(links), dtype=dtype or links.dtype)
        scale = None if weights.dtype.is_floating_point else torch.zeros(2)
        index = cls(weights, scale, version)
        index._checked[model], index._features = (look, 0), hashlib.sha256()
        index._table.forget(slice(None))
        index._table.write(unknown, _weights_of(model, unknown))
        if items is None:
            items = torch.arange(len(model.embeddings.items.values))
        index.add(model, items, batch_size=batch_size)
        return index

    @classmethod
    @torch.inference_mode(False)
    def open(cls, path: str | Path) -> LinkIndex:
        """Maps a file that :meth:`save` wrote: no row is read before it is looked up.

        Later changes to the index stay in memory and never reach the file.
        """
        with safe_open(path, framework="pt") as file:
            names, version = file.keys(), file.metadata()["version"]
            scale = file.get_tensor("scale") if "scale" in names else None
            return cls(file.get_tensor("weights"), scale, version)

    def save(self, path: str | Path) -> None:
        """Writes the index as safetensors, whole or not at all."""
        with self._lock:
            table = self._table.trimmed("cpu")
        tensors = {"weights": table.weights}
        if table.scale is not None:
            tensors["scale"] = table.scale
        with written_whole(path) as partial:
            save_file(tensors, partial, {"version": table.version})

    @torch.inference_mode(False)
    def to(self, device: torch.device | str) -> LinkIndex:
        """This index on another device, as it is now; itself where it is there already.

        No look-up there waits for the device, so none can refuse an item: the weights
        of one that is not in the index are NaN, and so are its scores.
        """
        return self if torch.device(device) == self.device else self._copied_to(device)

    @torch.inference_mode(False)
    def __deepcopy__(self, memo: dict) -> LinkIndex:
        """The index as it is now, in memory of its own."""
        return self._copied_to(self.device)

    def _copied_to(self, device: torch.device | str) -> LinkIndex:
        with self._lock:
            table = self._table.trimmed(device)
            other = LinkIndex(table.weights, table.scale, table.version)
            other._checked.update(self._checked)
            other._features = self._features
        return other

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self._table.weights.device

    @property
    def version(self) -> str:
        """Of what the rows were computed from, see :func:`item_version`."""
        return self._table.version

    @property
    def weights(self) -> Tensor:
        """[I, r] the rows of items 0..I-1 as they are kept: a view."""
        table = self._table
        return table.weights[1 : 1 + table.n]

    @property
    def scale(self) -> Tensor | None:
        """[I] float32 what the rows of an int8 table are multiplied with, else None."""
        table = self._table
        return None if table.scale is None else table.scale[1 : 1 + table.n]

    def __len__(self) -> int:
        """I, the number of rows, those that hold no item among them."""
        return self._table.n

    def __getitem__(self, item: Tensor) -> Tensor:
        """Candidate clock: item indices [...] -> weights [..., r].

        They come in the table's type; in float32 from an int8 table.

        Raises:
            KeyError: items are not in the index; the message names the first few. On a
                device other than the CPU their weights are NaN instead.
        """
        weights = self._table.of(item.to(self.device))
        if self.device.type == "cpu":
            _require_there(item, weights)
        return weights.to(item.device)

    def rows(self, item: Tensor) -> LinkRows:
        """Candidate clock: where the weights of items [B, M] lie, for ``Lime.fuse``.

        So that look-up and sum are one kernel on a GPU, and nothing waits for it: NaN
        comes of items that are not in the index.
        """
        table = self._table
        return LinkRows(table.weights, table.row(item.to(self.device)), table.scale)

    @torch.inference_mode(False)
    def add(self, model: DLRM, items: Tensor, *, batch_size: int = 65_536) -> None:
        """Item clock: computes the rows of items [K] and leaves all others alone.

        O(K), amortized: a full table is copied to one with twice the room. Items may be
        ones that the model which built the index did not know: new rows of its values,
        or of another model's with the same weights and the same older items.

        Raises:
            KeyError: the model cannot embed an item.
            ValueError: the index was built from other weights than this model's, or
                they change meanwhile; the model is in training mode.
        """
        with self._lock:
            self.require(model)
            if not len(items):
                return
            known = len(model.embeddings.items.values)
            if items.min() < 0 or items.max() >= known:
                raise KeyError(
                    f"items {int(items.min())}..{int(items.max())}: the model embeds "
                    f"items 0..{known - 1}"
                )
            table, features = self._table, self._features.copy()
            n = max(table.n, int(items.max()) + 1)
            _read_features(features, model, table.n, n)
            weights, _, _ = table.version.partition("-")
            table = table.with_items(n, f"{weights}-{features.hexdigest()}")
            bar = progress(total=len(items), unit=" items", unit_scale=True, leave=None)
            with bar:
                for batch in items.split(batch_size):
                    made = _weights_of(model, batch)
                    self.require(model)  # the weights are still those of the index
                    table.write(batch, made)
                    bar.update(len(batch))
            look, _ = self._checked[model]
            self._checked[model], self._features = (look, n), features
            self._table = table  # a reader finds the new rows from here on

    def remove(self, items: Tensor) -> None:
        """Takes items [K] out of the index; no other row changes.

        Raises:
            KeyError: an item is not in the index.
        """
        with self._lock:
            items = items.to(self.device)
            _require_there(items, self._table.of(items))
            self._table.forget(items + 1)

    def require(self, model: DLRM) -> None:
        """Holds the index to a model: a hash, taken anew when PyTorch saw a change.

        Several models may be held to it in turn, each hashed once; none is kept alive.
        To keep the hash off the request path, call this when a model is deployed.

        Raises:
            TypeError: the ranker has no links.
            ValueError: the index is stale: its rows are of other weights, or of items
                with other features. The model is in training mode.
        """
        n = len(self)
        look, checked = self._checked.get(model, (None, -1))
        if checked >= n and look.still(model):
            return
        with self._lock:
            look = _Look(model)  # before the hash: what changes in between is seen
            n, features = len(self), hashlib.sha256()
            there = n <= len(model.embeddings.items.values)
            if there:
                _read_features(features, model, 0, n)
            version = f"{_item_weights(model)}-{features.hexdigest()}"
            if not there or version != self.version:
                raise ValueError(
                    "the link index is stale: it was built from other weights, or "
                    "other features of its items. Build it again from this model"
                )
            self._checked[model], self._features = (look, n), features


def item_version(model: DLRM, n: int) -> str:
    """A hash of all that the link weights of items 0..n-1 are computed from.

    The item tables and the bottom MLP, the encoder and its phi; then these items'
    features, row by row: neither users nor the top MLP, nor items from n on.

    Raises:
        TypeError: the ranker has no links.
    """
    features = hashlib.sha256()
    _read_features(features, model, 0, n)
    return f"{_item_weights(model)}-{features.hexdigest()}"


def _item_side(model: DLRM) -> tuple[FeatureEmbedding, Lime]:
    """The modules that an item's link weights are computed by."""
    if not isinstance(model.encoder, Lime):
        raise TypeError(
            f"{type(model.encoder).__name__} has no links to index: the encoder must "
            "be LIME-MHA or LIME-XOR"
        )
    return model.embeddings.items, model.encoder


def _item_weights(model: DLRM) -> str:
    """A hash of the weights of the item side."""
    items, encoder = _item_side(model)
    named = chain(
        ((f"items.{name}", table) for name, table in items.named_parameters()),
        ((f"{encoder.phi}.{name}", w) for name, w in encoder.named_parameters()),
    )
    return version_of(named)


def _read_features(digest: Any, model: DLRM, first: int, end: int) -> None:
    """Goes on with a hash of features by those of items first..end-1, row by row."""
    device = model.encoder.links.device
    for items in torch.arange(first, end, device=device).split(BLOCK):
        codes = model.embeddings.items.values(items)
        plain = [c.unsqueeze(1) if c.dim() == 1 else c for c in codes.sparse.values()]
        rows = [c.cpu().double() for c in (codes.dense, *plain)]  # both are exact
        digest.update(torch.cat(rows, dim=1).numpy().tobytes())


@torch.no_grad()
def _weights_of(model: DLRM, items: Tensor) -> Tensor:
    """Link weights of items [K] in the model's own precision: [K, r]."""
    device = model.encoder.links.device
    with torch.autocast(device.type, enabled=False):
        vectors = model.embeddings.items(items.to(device)).sum(-2)
        return model.encoder.encode_items(vectors)


def _require_there(item: Tensor, weights: Tensor) -> None:
    """Raises KeyError unless items [...] have weights [..., r]."""
    missing = weights[..., 0].isnan()
    if missing.any():
        unknown = item.to(missing.device)[missing].unique().tolist()
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise KeyError(f"items {unknown[:5]}{more} are not in the link index: add them")
