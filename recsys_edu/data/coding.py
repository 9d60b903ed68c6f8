"""Coding: how raw columns become numbers that a model can read, fitted once.

A coding is fitted on the log that a ranker is trained on, and is kept with its weights:
a weight means something only under the codes it was trained on. What comes later is
written in the same codes. A category that was not there is 0, "unknown"; nothing is
standardised anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

UNKNOWN = -1
"""The index of a user, an item or an action that is not known: row 0 of every table."""

Column = Sequence[Any] | np.ndarray
"""Raw values of n users or items; of a bag, n lists of values."""


@dataclass(frozen=True)
class Scale:
    """A dense column: (x - mean) / deviation; a missing value (NaN) becomes 0.

    Attributes:
        deviation: the standard deviation, or 1 for a column that never varies.
    """

    mean: float
    deviation: float

    @classmethod
    def fit(cls, column: Column) -> Scale:
        """Mean and deviation of the values that are there."""
        values = np.asarray(column, np.float64)
        known = values[~np.isnan(values)]
        if not len(known):
            return cls(0.0, 1.0)
        return cls(float(known.mean()), float(known.std()) or 1.0)

    def encode(self, column: Column) -> np.ndarray:
        """[n] raw values -> [n] float32."""
        values = np.asarray(column, np.float64)
        scaled = (values - self.mean) / self.deviation
        return np.where(np.isnan(values), 0, scaled).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Categories:
    """A sparse column: the code of a category is 1 + its place; 0 is "unknown".

    Attributes:
        values: [C] the categories, all of one type.
        width: W, the most values that a bag keeps; 0 for a plain column.
    """

    values: np.ndarray
    width: int = 0

    @classmethod
    def fit(cls, column: Column) -> Categories:
        """The values that are there, sorted; a column of lists is a bag."""
        bags = _bags(column)
        if bags is None:
            return cls(_distinct(column))
        width = max((len(bag) for bag in bags), default=0)
        return cls(_distinct([v for bag in bags for v in bag]), max(width, 1))

    @property
    def rows(self) -> int:
        """Rows that an embedding table of these codes needs, "unknown" included."""
        return len(self.values) + 1

    @cached_property
    def _code(self) -> dict[Any, int]:
        return {v: code for code, v in enumerate(self.values.tolist(), start=1)}

    def encode(self, column: Column) -> np.ndarray:
        """[n] raw values -> [n] int64 codes; of a bag [n, W], 0 where it holds less.

        Of a bag the first W values are kept, and what is unknown is left out.

        Raises:
            ValueError: lists for a plain column, or single values for a bag.
        """
        bags = _bags(column)
        if len(column) and (bags is None) != (self.width == 0):
            wanted = "lists of values" if self.width else "single values"
            raise ValueError(f"this column takes {wanted}, not {column[0]!r}")
        if self.width == 0:
            return self._codes(column)
        flat = self._codes([v for bag in bags or () for v in bag])
        row = np.repeat(np.arange(len(column)), [len(bag) for bag in bags or ()])
        row, flat = row[flat > 0], flat[flat > 0]
        slot = np.arange(len(row)) - np.searchsorted(row, row)
        kept = slot < self.width
        codes = np.zeros((len(column), self.width), np.int64)
        codes[row[kept], slot[kept]] = flat[kept]
        return codes

    def _codes(self, column: Column) -> np.ndarray:
        if isinstance(column, np.ndarray) and column.dtype.kind in "iufb":
            if self.values.dtype.kind not in "iufb" or not len(self.values):
                return np.zeros(len(column), np.int64)
            order = np.argsort(self.values, kind="stable")
            place = np.searchsorted(self.values, column, sorter=order)
            place = order[np.minimum(place, len(order) - 1)]
            return np.where(self.values[place] == column, place + 1, 0)
        code = self._code
        return np.array([code.get(v, 0) for v in _plain(column)], np.int64)


@dataclass(frozen=True, eq=False)
class Coding:
    """How the raw columns of one side, users or items, become codes.

    Attributes:
        dense: name -> scale, in the order of the dense columns.
        sparse: name -> categories, in the order of the tables.
    """

    dense: Mapping[str, Scale]
    sparse: Mapping[str, Categories]

    @classmethod
    def fit(
        cls,
        dense: Mapping[str, Column],
        sparse: Mapping[str, Column],
        categories: Mapping[str, Column] | None = None,
    ) -> Coding:
        """The coding of these columns.

        Args:
            dense, sparse: raw columns by name, n values each.
            categories: name -> all values of a sparse column, in the order of their
                codes; unless given, those that are there, sorted.
        """
        fitted = {}
        for name, column in sparse.items():
            try:
                fitted[name] = Categories.fit(column)
            except TypeError as error:
                raise ValueError(
                    f"column {name!r} holds values of several types, which have no "
                    f"order: make all of them text ({error})"
                ) from error
            if categories is not None and name in categories:
                values = np.asarray(categories[name])
                fitted[name] = Categories(values, fitted[name].width)
        return cls({n: Scale.fit(column) for n, column in dense.items()}, fitted)

    @classmethod
    def of_codes(
        cls,
        dense: Sequence[str],
        rows: Mapping[str, int],
        widths: Mapping[str, int],
    ) -> Coding:
        """The coding of columns that are codes already, and standardised: it is none.

        Args:
            dense: names of the dense columns.
            rows: name -> rows of the table of a sparse column.
            widths: name -> W of a bag, 0 of a plain column.
        """
        return cls(
            {name: Scale(0.0, 1.0) for name in dense},
            {
                name: Categories(np.arange(1, size), widths[name])
                for name, size in rows.items()
            },
        )

    @property
    def rows(self) -> dict[str, int]:
        """Name of a sparse column -> rows of its embedding table."""
        return {name: column.rows for name, column in self.sparse.items()}

    def without(self, names: Sequence[str]) -> Coding:
        """The same less the columns of these names."""
        return Coding(
            {k: v for k, v in self.dense.items() if k not in names},
            {k: v for k, v in self.sparse.items() if k not in names},
        )


@dataclass(frozen=True)
class EventCoding:
    """What an event carries beside its item: an action, and a time.

    Attributes:
        actions: the source's own value of each action; an action's code is its place.
        first, last: seconds since 1970, the span of the log this was fitted on.
    """

    actions: tuple[Any, ...]
    first: int = 0
    last: int = 0

    @cached_property
    def _code(self) -> dict[Any, int]:
        return {action: code for code, action in enumerate(self.actions)}

    def index(self, actions: Column) -> np.ndarray:
        """[k] actions as the source has them -> [k] int64 codes, or UNKNOWN."""
        code = self._code
        return np.array([code.get(a, UNKNOWN) for a in _plain(actions)], np.int64)


def _plain(column: Column) -> list:
    return column.tolist() if hasattr(column, "tolist") else list(column)


def _bags(column: Column) -> list | None:
    """The lists of a bag's column, None for a column of single values."""
    if isinstance(column, np.ndarray) and column.ndim == 2:
        return list(column)
    if isinstance(column, np.ndarray) and column.dtype != object:
        return None
    values = list(column)
    if any(isinstance(v, list | tuple | set | np.ndarray) for v in values):
        return [() if missing(v) else _plain(v) for v in values]
    return None


def missing(value: Any) -> bool:
    """None, NaN, and pandas' NA and NaT: a value that is not there."""
    if isinstance(value, str | int):
        return False
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _distinct(column: Column) -> np.ndarray:
    """The different values of a column, sorted, less the missing ones."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "iufbU":
        values = np.unique(column)
        return values[~np.isnan(values)] if values.dtype.kind == "f" else values
    values = sorted({v for v in _plain(column) if not missing(v)})
    return np.array(values) if values else np.zeros(0, np.int64)
