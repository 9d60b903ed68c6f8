"""The ranking log: who was shown what, when, and what came of it.

Sizes, here and in the loaders: E impressions (one row of the log each), U users,
I items. An impression's **history** is every event of the same user *strictly*
earlier than it. Two events in the same second are not each other's past: a ranker
that reads one of them while it scores the other reads the future.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LAST_SECOND = 4_102_444_800  # 2100-01-01 UTC; later "seconds" are milliseconds


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """Static features of n users or of n items, one row each.

    The rows are read by the embedding tables: those of items on the item clock, those
    of users on the request clock.

    Attributes:
        dense: [n, D] float32, finite, standardised by the loader.
        dense_names: D names, one per column of `dense`.
        sparse: name -> [n] int64, or [n, W] int64 for a bag of up to W values; 0 is
            "unknown" in a column and padding in a bag.
        cardinality: name -> rows its embedding table needs: max value + 1, 0 included.

    Raises:
        ValueError: a wrong shape, dtype, name or value; says which column and row.
    """

    dense: np.ndarray
    dense_names: tuple[str, ...]
    sparse: dict[str, np.ndarray]
    cardinality: dict[str, int]

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
            _require_column(name, column, np.float32, len(self))
            _require(np.isfinite(column), name, column, "is not finite")
        for name, column in self.sparse.items():
            _require_column(name, column, np.int64, len(self), dimensions=(1, 2))
            size = self.cardinality[name]
            ok = (column >= 0) & (column < size)
            ok = ok.reshape(len(self), -1).all(axis=1)
            _require(ok, name, column, f"is outside 0..{size - 1}")

    @classmethod
    def from_columns(
        cls, dense: dict[str, np.ndarray], sparse: dict[str, np.ndarray]
    ) -> "Features":
        """Features of raw columns, at least one of them sparse.

        A dense column [n] becomes (x - mean) / standard deviation over the n rows; a
        missing value (NaN) becomes 0, the mean, as does a column that never varies.
        Cardinalities are those of the values seen.
        """
        n = len(next(iter(sparse.values())))
        columns = np.zeros((n, len(dense)), dtype=np.float32)
        for column, values in zip(columns.T, dense.values(), strict=True):
            known = ~np.isnan(values)
            if known.any():
                spread = values[known].std() or 1.0
                column[known] = (values[known] - values[known].mean()) / spread
        return cls(
            dense=columns,
            dense_names=tuple(dense),
            sparse=sparse,
            cardinality={name: int(v.max()) + 1 for name, v in sparse.items()},
        )

    def __len__(self) -> int:
        return len(self.dense)

    def __repr__(self) -> str:
        sparse = ", ".join(f"{name} ({n:,})" for name, n in self.cardinality.items())
        dense = ", ".join(self.dense_names)
        return f"Features({len(self):,} rows;\n  sparse: {sparse};\n  dense: {dense})"

    def without(self, *names: str) -> "Features":
        """The same features less those called `names`, dense or sparse.

        Raises:
            KeyError: a name that is not there; says which names are.
        """
        there = [*self.dense_names, *self.sparse]
        if unknown := [name for name in names if name not in there]:
            raise KeyError(f"no feature {unknown}: there are {there}")
        kept = [name not in names for name in self.dense_names]
        sparse = {k: v for k, v in self.sparse.items() if k not in names}
        return Features(
            dense=self.dense[:, np.array(kept, dtype=bool)],
            dense_names=tuple(n for n in self.dense_names if n not in names),
            sparse=sparse,
            cardinality={name: self.cardinality[name] for name in sparse},
        )


@dataclass(frozen=True, eq=False, repr=False)
class InteractionLog:
    """E impressions in time order, and what is known about their users and items.

    Attributes:
        user: [E] int64 in 0..U-1.
        item: [E] int64 in 0..I-1.
        timestamp: [E] int64, seconds since 1970 (UTC), never decreasing.
        label: [E] float32, 1 where the impression was a success and 0 where not.
        action: [E] int64 in 0..n_actions-1, what the user did; it is known only
            afterwards, so it may be read in a history and never in a candidate.
        users: static features of the U users.
        items: static features of the I items.
        user_ids: [U] the source's own id of each user.
        item_ids: [I] the source's own id of each item.
        item_titles: [I] a name to print, or None.
        n_actions: how many different actions there are.
        name: what to call this log in errors and figures.

    Raises:
        ValueError: any of the above does not hold; says which column and row. Rows out
            of time order are refused here and sorted by `from_unsorted`.
    """

    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    label: np.ndarray
    action: np.ndarray
    users: Features
    items: Features
    user_ids: np.ndarray
    item_ids: np.ndarray
    item_titles: np.ndarray | None
    n_actions: int
    name: str

    def __post_init__(self) -> None:
        try:
            self._validate()
        except ValueError as error:
            raise ValueError(f"log {self.name!r}: {error}") from None

    def _validate(self) -> None:
        if len(self) == 0:
            raise ValueError("there is no impression in it")
        for column, limit in (
            ("user", self.n_users),
            ("item", self.n_items),
            ("timestamp", LAST_SECOND),
            ("action", self.n_actions),
        ):
            values = getattr(self, column)
            _require_column(column, values, np.int64, len(self))
            ok = (values >= 0) & (values < limit)
            _require(ok, column, values, f"is outside 0..{limit - 1}")
        in_order = np.diff(self.timestamp, prepend=self.timestamp[:1]) >= 0
        rule = (
            "is earlier than the row before: sort, or use InteractionLog.from_unsorted"
        )
        _require(in_order, "timestamp", self.timestamp, rule)
        _require_column("label", self.label, np.float32, len(self))
        _require(np.isin(self.label, (0, 1)), "label", self.label, "is not 0 or 1")
        for column, ids, size in (
            ("user_ids", self.user_ids, self.n_users),
            ("item_ids", self.item_ids, self.n_items),
            ("item_titles", self.item_titles, self.n_items),
        ):
            if ids is not None and ids.shape != (size,):
                raise ValueError(f"{column} has shape {ids.shape}, expected ({size},)")
        for column, ids in (("user_ids", self.user_ids), ("item_ids", self.item_ids)):
            if len(np.unique(ids)) < len(ids):
                raise ValueError(f"{column} holds the same id twice")

    @classmethod
    def from_unsorted(
        cls,
        *,
        user: np.ndarray,
        item: np.ndarray,
        timestamp: np.ndarray,
        label: np.ndarray,
        action: np.ndarray,
        **rest,
    ) -> "InteractionLog":
        """A log from rows in any order; rows of equal timestamp keep their order.

        Takes the attributes of `InteractionLog` by name. Duplicate rows are kept: a
        user can be shown the same item twice in a second.
        """
        order = np.argsort(timestamp, kind="stable")
        columns = dict(
            user=user, item=item, timestamp=timestamp, label=label, action=action
        )
        return cls(**{name: v[order] for name, v in columns.items()}, **rest)

    def __len__(self) -> int:
        return len(self.user)

    def __repr__(self) -> str:
        first, last = np.datetime64(0, "s") + self.timestamp[[0, -1]]
        return (
            f"InteractionLog({self.name}: {len(self):,} impressions,\n"
            f"  {self.n_users:,} users, {self.n_items:,} items, "
            f"{first.astype('M8[D]')}..{last.astype('M8[D]')}, "
            f"{self.label.mean():.1%} positive)"
        )

    @property
    def n_users(self) -> int:
        """U, counting users that the log never shows."""
        return len(self.users)

    @property
    def n_items(self) -> int:
        """I, counting items that the log never shows."""
        return len(self.items)

    def user_index(self, ids: Sequence | np.ndarray) -> np.ndarray:
        """Index [k] of the k users whose source ids are `ids`.

        Raises:
            KeyError: an id that is not in this log; names the first few.
        """
        return _index(self.user_ids, ids, f"user id in {self.name}")

    def item_index(self, ids: Sequence | np.ndarray) -> np.ndarray:
        """Index [k] of the k items whose source ids are `ids`.

        Raises:
            KeyError: an id that is not in this log; names the first few.
        """
        return _index(self.item_ids, ids, f"item id in {self.name}")


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of a log for training, validation and test, each in time order."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_by_time(
    log: InteractionLog, fractions: Sequence[float] = (0.8, 0.1, 0.1)
) -> Split:
    """The past to train on, then validation, then the future to test on.

    One global clock cuts all users alike, as deployment does. A border inside a run of
    equal timestamps moves back to the start of that run, so that no second stands on
    both sides.

    Raises:
        ValueError: fractions that do not add to 1, or a part that would be empty.
    """
    borders = _borders(fractions, len(log))
    # The sentinel stands for the end of the log, a border that needs no moving.
    timestamp = np.append(log.timestamp, LAST_SECOND)
    borders = np.searchsorted(timestamp, timestamp[borders], side="left")
    return _cut(np.arange(len(log)), borders)


def split_at_random(
    log: InteractionLog, fractions: Sequence[float] = (0.8, 0.1, 0.1), *, seed: int
) -> Split:
    """Rows dealt out by chance: training then holds events later than the test's.

    This is the split that flatters a ranker; chapter 00 measures by how much.

    Raises:
        ValueError: fractions that do not add to 1, or a part that would be empty.
    """
    rows = np.random.default_rng(seed).permutation(len(log))
    return _cut(rows, _borders(fractions, len(log)))


def earlier_events(
    user: np.ndarray, timestamp: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The strictly earlier events of each row's user: one slice per row, for one sort.

    Row e's history is the rows `order[start[e]:end[e]]`, oldest first. O(E log E)
    time and 3 E integers, where an [E, N] copy of the histories would take E N.

    Args: user, timestamp: [E] integers, the rows in any order.
    Returns:
        order: [E] rows sorted by (user, timestamp); ties keep the order of the rows.
        start: [E] where the events of the row's user begin in `order`.
        end: [E] where the row's own second begins there: one past its history.
    """
    order = np.lexsort((timestamp, user))
    new_user = np.diff(user[order], prepend=-1) != 0
    new_moment = new_user | (np.diff(timestamp[order], prepend=-1) != 0)
    position = np.arange(len(order))
    start, end = np.empty_like(order), np.empty_like(order)
    # A running maximum carries the position of each run's first event along the run.
    start[order] = np.maximum.accumulate(np.where(new_user, position, 0))
    end[order] = np.maximum.accumulate(np.where(new_moment, position, 0))
    return order, start, end


@dataclass(frozen=True, eq=False)
class Histories:
    """Every user's events once, and for each impression which of them came before it.

    Row e of the log has the history `item[start[e]:end[e]]`, oldest first; an empty
    slice is a valid history. The request clock pays for reading it.

    Attributes:
        item: [E] int64, sorted by (user, timestamp).
        action: [E] int64, what the user did with each.
        timestamp: [E] int64, seconds.
        start: [E] int64, for each row of the log its user's first event.
        end: [E] int64, for each row of the log one past the end of its history.
    """

    item: np.ndarray
    action: np.ndarray
    timestamp: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @classmethod
    def from_log(cls, log: InteractionLog) -> "Histories":
        """The histories of all impressions of `log`, built with one sort."""
        order, start, end = earlier_events(log.user, log.timestamp)
        return cls(
            item=log.item[order],
            action=log.action[order],
            timestamp=log.timestamp[order],
            start=start,
            end=end,
        )

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """N, the number of earlier events, of each of the log's `rows` [k] -> [k]."""
        return self.end[rows] - self.start[rows]


def _require_column(
    column: str, values: np.ndarray, dtype: type, size: int, dimensions=(1,)
) -> None:
    ok = values.dtype == dtype and values.ndim in dimensions and len(values) == size
    if not ok:
        raise ValueError(
            f"column {column!r} is {values.dtype} {list(values.shape)}, "
            f"expected {np.dtype(dtype)} with {size} rows"
        )


def _require(ok: np.ndarray, column: str, values: np.ndarray, rule: str) -> None:
    if not ok.all():
        row = int(np.argmin(ok))
        raise ValueError(f"column {column!r}, row {row}: {values[row]} {rule}")


def _index(known: np.ndarray, ids: Sequence | np.ndarray, what: str) -> np.ndarray:
    index = {key: row for row, key in enumerate(known.tolist())}
    wanted = np.asarray(ids).tolist()
    if unknown := [key for key in wanted if key not in index]:
        raise KeyError(f"no such {what}: {unknown[:5]} ({len(unknown)} unknown)")
    return np.array([index[key] for key in wanted], dtype=np.int64)


def _borders(fractions: Sequence[float], rows: int) -> np.ndarray:
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions {fractions} are not three shares that add to 1")
    return np.rint(np.cumsum(fractions)[:2] * rows).astype(np.int64)


def _cut(rows: np.ndarray, borders: np.ndarray) -> Split:
    parts = dict(
        zip(
            ("train", "validation", "test"),
            (np.sort(part) for part in np.split(rows, borders)),
            strict=True,
        )
    )
    if empty := [name for name, part in parts.items() if len(part) == 0]:
        raise ValueError(
            f"{len(rows)} rows leave {empty} empty: other fractions, or a longer log"
        )
    return Split(**parts)
