"""Features: who the users and items are, and what is known of each, one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from recsys_edu.data.coding import UNKNOWN, Coding, Column


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """Static features of n users or of n items, one row each.

    The rows are read by the embedding tables: those of items on the item clock, those
    of users on the request clock. :meth:`fit` makes them of raw columns.

    Attributes:
        dense: [n, D] float32, finite, standardised.
        dense_names: D names, one per column of `dense`.
        sparse: name -> [n] int64, or [n, W] int64 for a bag of up to W values; 0 is
            "unknown" in a column and padding in a bag.
        cardinality: name -> rows its embedding table needs, row 0 included.
        ids: [n] the source's own id of each row, integers or text, none twice; unless
            given, 0..n-1.
        coding: how raw columns became these; unless given, they were codes already.

    Raises:
        ValueError: a wrong shape, dtype, name or value; says which column and row.

    Example:
        >>> films = Features.fit(
        ...     ids=[7, 9], dense={"year": [1950, 1990]}, sparse={"kind": ["b", "a"]}
        ... )
        >>> films.dense[:, 0].tolist(), films.sparse["kind"].tolist()
        ([-1.0, 1.0], [2, 1])
        >>> films.index([9, 8])  # 8 is not known
        array([ 1, -1])
    """

    dense: np.ndarray
    dense_names: tuple[str, ...]
    sparse: dict[str, np.ndarray]
    cardinality: dict[str, int]
    ids: np.ndarray | None = None
    coding: Coding | None = None

    def __post_init__(self) -> None:
        if self.dense.ndim != 2 or self.dense.shape[1] != len(self.dense_names):
            raise ValueError(
                f"dense has shape {self.dense.shape}, but there are "
                f"{len(self.dense_names)} dense names: it must be [n, D]"
            )
        if self.sparse.keys() != self.cardinality.keys():
            raise ValueError(
                f"sparse has {sorted(self.sparse)}, "
                f"but cardinality has {sorted(self.cardinality)}"
            )
        names = [*self.dense_names, *self.sparse]
        if len(set(names)) < len(names):
            raise ValueError(f"a feature name appears twice in {names}")
        for name, column in zip(self.dense_names, self.dense.T, strict=True):
            require_column(name, column, np.float32, len(self))
            require(np.isfinite(column), name, column, "is not finite")
        for name, column in self.sparse.items():
            require_column(name, column, np.int64, len(self), dimensions=(1, 2))
            size = self.cardinality[name]
            ok = (column >= 0) & (column < size)
            ok = ok.reshape(len(self), -1).all(axis=1)
            require(ok, name, column, f"is outside 0..{size - 1}")
        ids = np.arange(len(self)) if self.ids is None else np.asarray(self.ids)
        if ids.shape != (len(self),):
            raise ValueError(f"ids has shape {ids.shape}, expected ({len(self)},)")
        if ids.dtype.kind not in "iuU":
            raise ValueError(f"ids are {ids.dtype}: they must be integers or text")
        if len(np.unique(ids)) < len(ids):
            raise ValueError("ids holds the same id twice")
        object.__setattr__(self, "ids", ids)
        if self.coding is None:
            widths = {
                k: v.shape[1] if v.ndim == 2 else 0 for k, v in self.sparse.items()
            }
            coding = Coding.of_codes(self.dense_names, self.cardinality, widths)
            object.__setattr__(self, "coding", coding)

    @classmethod
    def fit(
        cls,
        ids: Column,
        dense: Mapping[str, Column] | None = None,
        sparse: Mapping[str, Column] | None = None,
        categories: Mapping[str, Column] | None = None,
    ) -> Features:
        """Features of raw columns, and the coding that is fitted on them.

        Args:
            ids: n different ids.
            dense: name -> n numbers, NaN where missing.
            sparse: name -> n categories, None where missing; n lists for a bag.
            categories: see :meth:`Coding.fit`.
        """
        dense, sparse = dense or {}, sparse or {}
        coding = Coding.fit(dense, sparse, categories)
        return cls.encode(coding, ids, dense, sparse)

    @classmethod
    def encode(
        cls,
        coding: Coding,
        ids: Column,
        dense: Mapping[str, Column],
        sparse: Mapping[str, Column],
    ) -> Features:
        """Features of raw columns in a coding that was fitted before.

        Args:
            dense, sparse: as in :meth:`fit`. A column that is left out is unknown; one
                that the coding does not have is refused.

        Raises:
            ValueError: a column that the coding does not have, or of another length.
        """
        n = len(ids)
        for kind, columns, known in (
            ("dense", dense, coding.dense),
            ("sparse", sparse, coding.sparse),
        ):
            if new := [name for name in columns if name not in known]:
                raise ValueError(
                    f"no {kind} feature {new}: the coding has {list(known)}"
                )
            for name, column in columns.items():
                if len(column) != n:
                    raise ValueError(
                        f"feature {name!r} has {len(column)} values for {n} ids"
                    )
        values = np.zeros((n, len(coding.dense)), np.float32)
        for column, (name, scale) in zip(values.T, coding.dense.items(), strict=True):
            if name in dense:
                column[:] = scale.encode(dense[name])
        codes = {}
        for name, column in coding.sparse.items():
            if name in sparse:
                try:
                    codes[name] = column.encode(sparse[name])
                except ValueError as error:
                    raise ValueError(f"feature {name!r}: {error}") from None
            else:
                shape = (n, column.width) if column.width else (n,)
                codes[name] = np.zeros(shape, np.int64)
        return cls(values, tuple(coding.dense), codes, coding.rows, ids, coding)

    def __len__(self) -> int:
        return len(self.dense)

    def __repr__(self) -> str:
        sparse = ", ".join(f"{name} ({n:,})" for name, n in self.cardinality.items())
        dense = ", ".join(self.dense_names)
        return f"Features({len(self):,} rows;\n  sparse: {sparse};\n  dense: {dense})"

    @cached_property
    def _place(self) -> dict:
        return {key: row for row, key in enumerate(self.ids.tolist())}

    def index(self, ids: Column) -> np.ndarray:
        """[k] ids as the source has them -> [k] int64 rows, UNKNOWN (-1) if not here.

        The look-up is built once, at the first call.
        """
        place = self._place
        return np.array(
            [place.get(key, UNKNOWN) for key in np.asarray(ids).tolist()], np.int64
        )

    def without(self, *names: str) -> Features:
        """The same features less those called `names`, dense or sparse.

        Raises:
            KeyError: a name that is not there; says which names are.
        """
        there = [*self.dense_names, *self.sparse]
        if unknown := [name for name in names if name not in there]:
            raise KeyError(f"no feature {unknown}: there are {there}")
        kept = [name not in names for name in self.dense_names]
        sparse = {k: v for k, v in self.sparse.items() if k not in names}
        return replace(
            self,
            dense=self.dense[:, np.array(kept, dtype=bool)],
            dense_names=tuple(n for n in self.dense_names if n not in names),
            sparse=sparse,
            cardinality={name: self.cardinality[name] for name in sparse},
            coding=self.coding.without(names),
        )


def require_column(
    column: str, values: np.ndarray, dtype: type, size: int, dimensions=(1,)
) -> None:
    """Raises ValueError unless a column has this type and length."""
    ok = values.dtype == dtype and values.ndim in dimensions and len(values) == size
    if not ok:
        raise ValueError(
            f"column {column!r} is {values.dtype} {list(values.shape)}, "
            f"expected {np.dtype(dtype)} with {size} rows"
        )


def require(ok: np.ndarray, column: str, values: np.ndarray, rule: str) -> None:
    """Raises ValueError over the first row where ``ok`` does not hold."""
    if not ok.all():
        row = int(np.argmin(ok))
        raise ValueError(f"column {column!r}, row {row}: {values[row]} {rule}")
