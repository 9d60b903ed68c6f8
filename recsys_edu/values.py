"""Values: the rows of codes behind an index. Data, not weights; they may grow."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_edu.data.coding import UNKNOWN, Column
from recsys_edu.data.features import Features


@dataclass(frozen=True)
class Codes:
    """What is known of users or items of any shape [...], as their tables read it."""

    dense: Tensor  # [..., D] standardised
    sparse: dict[str, Tensor]  # name -> [...] int64, or [..., W] of a bag


class Values:
    """One row of codes for each user or item: ``values(index)`` looks rows up.

    Row 0 of the tensors is :data:`~recsys_edu.data.UNKNOWN`: all codes 0, all dense
    features at their mean. Index i is row 1 + i, so that index -1 is the unknown one,
    and an index below that, or past the end, is an IndexError and no other row.

    A live ranker gets new items by :meth:`add`: no weight moves, and no row but the
    new ones. Codes are those of the log that the ranker was trained on; a category
    that was not there is 0. Readers need no lock: a row is written before an id leads
    to it. Copies of a ranker (its moving average, say) share these rows.

    Args:
        features: the first rows, and their coding.

    Attributes:
        coding: how raw columns become codes.
        version: how often a row that was there has been overwritten. What was computed
            from rows at one version is stale at another; new rows leave it alone.

    Example:
        >>> values = Values(Features.fit([7, 9], sparse={"kind": ["b", "a"]}))
        >>> values(torch.tensor([0, -1])).sparse["kind"].tolist()
        [2, 0]
        >>> values.add([8], sparse={"kind": ["a"]})
        tensor([2])
        >>> values.index([8, 5]).tolist()
        [2, -1]
    """

    def __init__(self, features: Features) -> None:
        self.coding = features.coding
        self.version = 0
        self._lock = threading.RLock()
        self._n = 0
        self._ids: list = []
        self._place: dict | None = None  # built at the first look-up of an id
        self._kind = features.ids.dtype.kind
        widths = {name: column.width for name, column in self.coding.sparse.items()}
        self._slices, first = {}, 0
        for name, width in widths.items():
            self._slices[name] = slice(first, first + width) if width else first
            first += width or 1
        self._dense = torch.zeros(1, len(self.coding.dense))
        self._codes = torch.zeros(1, first, dtype=torch.int64)
        self._write(features)

    def __len__(self) -> int:
        """n, the rows that stand for somebody."""
        return self._n

    def __call__(self, index: Tensor) -> Codes:
        """[...] indices, UNKNOWN or 0..n-1, -> their codes.

        Raises:
            IndexError: an index below UNKNOWN, or past the end.
        """
        row, end = index + 1, 1 + self._n  # beyond are rows that are not written yet
        codes = F.embedding(row, self._codes[:end])
        return Codes(
            F.embedding(row, self._dense[:end]),
            {name: codes[..., part] for name, part in self._slices.items()},
        )

    @property
    def ids(self) -> np.ndarray:
        """[n] the source's own ids."""
        return np.array(self._ids) if self._ids else np.zeros(0, np.int64)

    @property
    def id_kind(self) -> str:
        """What ids are: "text" or "integers"."""
        return "text" if self._kind == "U" else "integers"

    def index(self, ids: Column) -> np.ndarray:
        """[k] source ids -> [k] int64 indices, UNKNOWN (-1) for those not here.

        The look-up is built once, at the first call, and grows with the rows.

        Raises:
            ValueError: text for integers, or the other way round, which would find
                nobody.
        """
        place, keys = self._places(), self._ids_of(ids).tolist()
        return np.array([place.get(key, UNKNOWN) for key in keys], np.int64)

    def add(
        self,
        ids: Column,
        dense: Mapping[str, Column] | None = None,
        sparse: Mapping[str, Column] | None = None,
    ) -> Tensor:
        """Item clock: rows for k new ids -> their indices [k]. O(k), amortized.

        Args:
            dense, sparse: raw columns by name, as the log had them; those that are left
                out are unknown.

        Raises:
            ValueError: an id that is there already, or twice; a column that the coding
                does not have. Nothing is added then.
        """
        new = Features.encode(self.coding, self._ids_of(ids), dense or {}, sparse or {})
        with self._lock:
            place = self._places()
            if known := [key for key in new.ids.tolist() if key in place]:
                raise ValueError(
                    f"ids {known[:5]} are here already ({len(known)}): "
                    "replace() changes their rows"
                )
            first = self._n
            self._write(new)
            return torch.arange(first, self._n)

    def replace(
        self,
        ids: Column,
        dense: Mapping[str, Column] | None = None,
        sparse: Mapping[str, Column] | None = None,
    ) -> None:
        """Item clock: other codes for k ids that are here; ``version`` moves.

        The table is copied, O(n), so that who reads it meanwhile reads one version.

        Raises:
            KeyError: an id that is not here.
        """
        new = Features.encode(self.coding, self._ids_of(ids), dense or {}, sparse or {})
        with self._lock:
            index = self.index(new.ids)
            if (index == UNKNOWN).any():
                missing = new.ids[index == UNKNOWN].tolist()
                raise KeyError(f"ids {missing[:5]} are not here: add() them")
            row = torch.from_numpy(index) + 1
            dense_rows, codes = self._rows(new)
            self._dense, self._codes = self._dense.clone(), self._codes.clone()
            self._dense[row] = dense_rows.to(self._dense)
            self._codes[row] = codes.to(self._codes)
            self.version += 1

    def features(self) -> Features:
        """The rows as they are, with their ids and their coding."""
        codes = self._codes[1 : self._n + 1].cpu().numpy()
        return Features(
            dense=self._dense[1 : self._n + 1].float().cpu().numpy(),
            dense_names=tuple(self.coding.dense),
            sparse={name: codes[:, part].copy() for name, part in self._slices.items()},
            cardinality=self.coding.rows,
            ids=self.ids,
            coding=self.coding,
        )

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same rows with ``fn`` applied to their tensors, as ``module.to`` does.

        These values themselves where it changes neither; else rows of their own.
        """
        dense, codes = fn(self._dense), fn(self._codes)
        if dense is self._dense and codes is self._codes:
            return self
        with self._lock:
            other = copy.copy(self)
            other._lock = threading.RLock()
            other._ids, other._place = list(self._ids), None
        other._dense, other._codes = dense, codes
        return other

    def __copy__(self) -> Self:
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict) -> Self:
        """Itself: rows are data, and copies of a model are copies of its weights."""
        return self

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_place")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.RLock(), _place=None)

    def _places(self) -> dict:
        if self._place is None:
            with self._lock:
                self._place = {key: place for place, key in enumerate(self._ids)}
        return self._place

    def _ids_of(self, ids: Column) -> np.ndarray:
        ids = np.asarray(ids)
        if ids.dtype.kind == "O":
            ids = np.array(ids.tolist())
        wanted = "U" if self._kind == "U" else "iu"
        if ids.size and ids.dtype.kind not in wanted:
            raise ValueError(
                f"ids such as {ids.flat[0].item()!r} are {ids.dtype}, "
                f"and those here are {self.id_kind}"
            )
        return ids

    def _rows(self, features: Features) -> tuple[Tensor, Tensor]:
        """Dense values [k, D] and codes [k, C]. Copies: the log is left to itself."""
        columns = [
            features.sparse[name].reshape(len(features), -1) for name in self._slices
        ]
        codes = np.concatenate(columns, axis=1) if columns else np.zeros((0, 0))
        codes = codes.reshape(len(features), self._codes.shape[1]).astype(np.int64)
        return torch.tensor(features.dense), torch.from_numpy(codes)

    def _write(self, features: Features) -> None:
        """Appends rows; the tensors grow by doubling, so that k rows cost O(k)."""
        dense, codes = self._rows(features)
        end = 1 + self._n + len(features)
        if end > len(self._codes):
            size = end if self._n == 0 else max(end, 2 * len(self._codes))
            self._dense = _longer(self._dense, size)
            self._codes = _longer(self._codes, size)
        self._dense[1 + self._n : end] = dense.to(self._dense)
        self._codes[1 + self._n : end] = codes.to(self._codes)
        if self._place is not None:
            new = enumerate(features.ids.tolist(), start=self._n)
            self._place.update({key: place for place, key in new})
        self._ids += features.ids.tolist()
        self._n += len(features)


def _longer(table: Tensor, size: int) -> Tensor:
    longer = table.new_zeros(size, *table.shape[1:])
    longer[: len(table)] = table
    return longer
