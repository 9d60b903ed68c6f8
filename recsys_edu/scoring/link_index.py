"""LIME's link index: what a catalogue brings to the links, computed offline.

An item's weights of the r links know no user and no history, so they can be computed
when the catalogue changes and looked up when it is ranked. The index is a table [I, r]
in one file, mapped into memory when it is opened: only rows that are read are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from recsys_edu.dlrm import DLRM
from recsys_edu.encoders.lime import Lime
from recsys_edu.files import written_whole
from recsys_edu.progress import progress
from recsys_edu.scoring.versions import version_of


class LinkIndex:
    """Link weights phi(T L^t) by item index: ``index[item]``, [...] -> [..., r].

    ========  ==============  ======================================================
    type      bytes an item   a weight is
    ========  ==============  ======================================================
    a float   2, 4 or 8 r     itself, rounded
    int8      r + 4           an integer in -127..127 times its row's scale, so off by
                              at most max |row| / 254
    ========  ==============  ======================================================

    A row that holds no item has NaN as its first weight, or as its scale. The index is
    keyed by all that its rows were computed from, and refuses a model whose weights, or
    whose features of these items, are others. :meth:`build` or :meth:`open` one.

    Attributes:
        weights: [I, r] the table, on the CPU.
        scale: [I] float32 for int8, else None.
        version: of what the rows were computed from, see :func:`item_version`.
    """

    def __init__(self, weights: Tensor, scale: Tensor | None, version: str) -> None:
        self.weights, self.scale, self.version = weights, scale, version
        self._checked: tuple = ()

    @classmethod
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
            model: a ranker with a LIME encoder.
            items: [K] item indices; None for all that the model can embed.
            dtype: of the table, a float type or torch.int8; None for the model's.

        Raises:
            TypeError: the ranker has no links.
        """
        version = item_version(model, 0)
        links = model.encoder.links
        weights = torch.empty(0, len(links), dtype=dtype or links.dtype)
        scale = None if weights.dtype.is_floating_point else torch.empty(0)
        index = cls(weights, scale, version)
        if items is None:
            items = torch.arange(_n_items(model))
        index.add(model, items, batch_size=batch_size)
        return index

    @classmethod
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
        tensors = {"weights": self.weights}
        if self.scale is not None:
            tensors["scale"] = self.scale
        with written_whole(path) as partial:
            save_file(tensors, partial, {"version": self.version})

    def __len__(self) -> int:
        """I, the number of rows, those that hold no item among them."""
        return len(self.weights)

    def __getitem__(self, item: Tensor) -> Tensor:
        """Candidate clock: item indices [...] -> weights [..., r].

        They come in the table's type; in float32 from an int8 table.

        Raises:
            KeyError: items are not in the index; the message names the first few.
        """
        row = item.cpu()
        unknown = row[(row < 0) | (row >= len(self))]
        if not len(unknown):
            weights = self.weights[row]
            if self.scale is not None:
                weights = weights * self.scale[row].unsqueeze(-1)
            unknown = row[weights[..., 0].isnan()]
            if not len(unknown):
                return weights.to(item.device)
        unknown = unknown.unique().tolist()
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise KeyError(f"items {unknown[:5]}{more} are not in the link index: add them")

    @torch.no_grad()
    def add(self, model: DLRM, items: Tensor, *, batch_size: int = 65_536) -> None:
        """Item clock: computes the rows of items [K] and leaves all others alone.

        An item past the table's end makes it longer, by a copy. It may be one that the
        model which built the index did not know: one whose weights and older items are
        the same, made from a log that has grown.

        Raises:
            KeyError: the model cannot embed an item.
            ValueError: the index was built from other weights than this model's.
        """
        self.require(model)
        if not len(items):
            return
        if items.min() < 0 or items.max() >= _n_items(model):
            raise KeyError(
                f"items {int(items.min())}..{int(items.max())}: the model embeds items "
                f"0..{_n_items(model) - 1}"
            )
        if (n := int(items.max()) + 1) > len(self):
            nan = float("nan")
            if self.scale is None:
                self.weights = _longer(self.weights, n, nan)
            else:
                self.weights = _longer(self.weights, n, 0)
                self.scale = _longer(self.scale, n, nan)
            self.version = item_version(model, n)
        device = model.encoder.links.device
        bar = progress(total=len(items), unit=" items", unit_scale=True, leave=None)
        with bar:
            for batch in items.split(batch_size):
                vectors = model.embeddings.items(batch.to(device)).sum(-2)
                self._write(batch.cpu(), model.encoder.encode_items(vectors).cpu())
                bar.update(len(batch))

    def remove(self, items: Tensor) -> None:
        """Takes items [K] out of the index; no other row changes.

        Raises:
            KeyError: an item is not in the index.
        """
        self[items]  # names the unknown
        if self.scale is None:
            self.weights[items, 0] = float("nan")
        else:
            self.scale[items] = float("nan")

    def require(self, model: DLRM) -> None:
        """Holds the index to a model: a hash, taken anew when PyTorch saw a change.

        Raises:
            TypeError: the ranker has no links.
            ValueError: the index is stale: its rows are of other weights, or of items
                with other features.
        """
        side = _item_side(model, len(self))
        seen = [(name, tensor.data_ptr(), tensor._version) for name, tensor in side]
        if (model, seen) == self._checked:
            return
        if item_version(model, len(self)) != self.version:
            raise ValueError(
                "the link index is stale: it was built from other weights, or other "
                "features of its items. Build it again from this model"
            )
        self._checked = model, seen

    def _write(self, row: Tensor, weights: Tensor) -> None:
        if self.scale is not None:
            scale = weights.abs().amax(-1).float() / 127
            self.scale[row] = scale
            tiny = torch.finfo(torch.float32).tiny  # a row of zeros is zeros
            weights = (weights / scale.clamp(min=tiny).unsqueeze(-1)).round()
        self.weights[row] = weights.to(self.weights.dtype)


def item_version(model: DLRM, n: int) -> str:
    """A hash of all that the link weights of items 0..n-1 are computed from.

    The item tables and the bottom MLP, the encoder, its phi, and these items' features:
    neither users nor the top MLP, nor items from n on.

    Raises:
        TypeError: the ranker has no links.
    """
    return version_of(_item_side(model, n))


def _item_side(model: DLRM, n: int) -> Iterator[tuple[str, Tensor]]:
    """What :func:`item_version` hashes, by name."""
    if not isinstance(model.encoder, Lime):
        raise TypeError(
            f"{type(model.encoder).__name__} has no links to index: the encoder must "
            "be LIME-MHA or LIME-XOR"
        )
    items = model.embeddings.items
    for name, table in items.named_parameters():
        yield f"items.{name}", table
    for name, weight in model.encoder.named_parameters():
        yield f"{model.encoder.phi}.{name}", weight


def _n_items(model: DLRM) -> int:
    """How many items the model can embed."""
    return len(model.embeddings.items.values)


def _longer(table: Tensor, n: int, fill: float) -> Tensor:
    """A copy of a table [I, ...] with ``n`` rows, the new ones filled."""
    return torch.cat([table, table.new_full((n - len(table), *table.shape[1:]), fill)])
