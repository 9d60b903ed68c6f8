"""The ranking log: who was shown what, when, and what came of it.

Sizes, here and in the loaders: E impressions (one row of the log each), U users,
I items. Some or all of the impressions are **events**: what a user did with them is
remembered. An impression's **history** is every event of the same user *strictly*
earlier than it. Two events in the same second are not each other's past: a ranker
that reads one of them while it scores the other reads the future.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys_edu.data.coding import UNKNOWN, EventCoding
from recsys_edu.data.features import Features, require, require_column

LAST_SECOND = 4_102_444_800  # 2100-01-01 UTC; later "seconds" are milliseconds


@dataclass(frozen=True, eq=False, repr=False)
class InteractionLog:
    """E impressions in time order, and what is known about their users and items.

    Attributes:
        user: [E] int64 in 0..U-1.
        item: [E] int64 in 0..I-1.
        timestamp: [E] int64, seconds since 1970 (UTC), never decreasing.
        label: [E] float32, 1 where the impression was a success and 0 where not.
        action: [E] int64, what the user did: a place in `actions`; it is known only
            afterwards, so it may be read in a history and never in a candidate.
        users: the U users, their ids and static features.
        items: the I items, their ids and static features.
        item_titles: [I] a name to print, or None.
        actions: the source's own value of each action.
        name: what to call this log in errors and figures.
        request: [E] int64, not negative: rows of one request share a number. They were
            candidates for one user, who chose among them, so they are what a ranker is
            judged on. Their times may differ, as in a feed that is scrolled through.
            None: each row is a request of its own.
        event: [E] bool, the rows that enter histories. In a feed, where a user acts on
            few of the items shown, these are the rows acted on. None: all rows.

    Raises:
        ValueError: any of the above does not hold; says which column and row. Rows out
            of time order are refused here and sorted by `from_unsorted`.

    Example:
        >>> clicks = np.array([1, 0, 1])
        >>> log = InteractionLog.from_unsorted(
        ...     user=np.array([0, 0, 1]),
        ...     item=np.array([1, 0, 0]),
        ...     timestamp=np.array([20, 10, 30]),
        ...     label=clicks.astype(np.float32),
        ...     action=clicks,
        ...     users=Features.fit(["ann", "bob"]),
        ...     items=Features.fit([7, 9], dense={"price": [2.0, 3.0]}),
        ...     item_titles=None,
        ...     actions=("skip", "click"),
        ...     name="toy",
        ... )
        >>> log.item_ids[log.item].tolist()  # in time order
        [7, 9, 7]
        >>> Histories.from_log(log).lengths(np.arange(3)).tolist()
        [0, 1, 0]
    """

    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    label: np.ndarray
    action: np.ndarray
    users: Features
    items: Features
    item_titles: np.ndarray | None
    actions: tuple
    name: str
    request: np.ndarray | None = None
    event: np.ndarray | None = None

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
            require_column(column, values, np.int64, len(self))
            ok = (values >= 0) & (values < limit)
            require(ok, column, values, f"is outside 0..{limit - 1}")
        in_order = np.diff(self.timestamp, prepend=self.timestamp[:1]) >= 0
        rule = (
            "is earlier than the row before: sort, or use InteractionLog.from_unsorted"
        )
        require(in_order, "timestamp", self.timestamp, rule)
        require_column("label", self.label, np.float32, len(self))
        require(np.isin(self.label, (0, 1)), "label", self.label, "is not 0 or 1")
        if self.request is not None:
            require_column("request", self.request, np.int64, len(self))
            require(self.request >= 0, "request", self.request, "is negative")
            _, first, number = np.unique(self.request, True, True)
            ok = self.user == self.user[first][number]
            rule = "is a request of another user too: give each user's its own number"
            require(ok, "request", self.request, rule)
        if self.event is not None:
            require_column("event", self.event, np.bool_, len(self))
        titles = self.item_titles
        if titles is not None and titles.shape != (self.n_items,):
            raise ValueError(
                f"item_titles has shape {titles.shape}, expected ({self.n_items},)"
            )

    @classmethod
    def from_unsorted(
        cls,
        *,
        user: np.ndarray,
        item: np.ndarray,
        timestamp: np.ndarray,
        label: np.ndarray,
        action: np.ndarray,
        request: np.ndarray | None = None,
        event: np.ndarray | None = None,
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
        columns |= dict(request=request, event=event)
        rows = {name: v[order] for name, v in columns.items() if v is not None}
        return cls(**rows, **rest)

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

    @property
    def n_actions(self) -> int:
        """How many different actions there are."""
        return len(self.actions)

    @property
    def events(self) -> EventCoding:
        """How actions are coded, and when events happened."""
        first, last = self.timestamp[[0, -1]].tolist()
        return EventCoding(self.actions, first, last)

    @property
    def user_ids(self) -> np.ndarray:
        """[U] the source's own id of each user."""
        return self.users.ids

    @property
    def item_ids(self) -> np.ndarray:
        """[I] the source's own id of each item."""
        return self.items.ids

    def user_index(self, ids: Sequence | np.ndarray) -> np.ndarray:
        """Index [k] of the k users whose source ids are `ids`.

        Raises:
            KeyError: an id that is not in this log; names the first few.
        """
        return _index(self.users, ids, f"user id in {self.name}")

    def item_index(self, ids: Sequence | np.ndarray) -> np.ndarray:
        """Index [k] of the k items whose source ids are `ids`.

        Raises:
            KeyError: an id that is not in this log; names the first few.
        """
        return _index(self.items, ids, f"item id in {self.name}")


def earlier_events(
    user: np.ndarray, timestamp: np.ndarray, event: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The strictly earlier events of each row's user: one slice per row, for one sort.

    Row e's history is the rows `order[start[e]:end[e]]`, oldest first. O(E log E)
    time and 3 E integers, where an [E, N] copy of the histories would take E N. A row
    that is no event has a history too, and is in nobody's.

    Args:
        user, timestamp: [E] integers, the rows in any order.
        event: [E] bool, which of them are events; None for all.
    Returns:
        order: [H] the events' rows sorted by (user, timestamp); ties keep the order of
            the rows. H = E where all rows are events.
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
    if event is not None:  # a position becomes the number of events before it
        before = np.append(0, np.cumsum(event[order]))
        order, start, end = order[event[order]], before[start], before[end]
    return order, start, end


def sittings(user: np.ndarray, timestamp: np.ndarray, gap: int = 1800) -> np.ndarray:
    """Which rows a user came to in one sitting: a request number for each row, [E].

    A user's rows belong together as long as no pause between them is longer than
    ``gap`` seconds. Numbers count from 0, along users and then along time.

    Args:
        user, timestamp: [E] integers, the rows in any order.

    Example:
        >>> sittings(np.array([7, 7, 3, 7]), np.array([0, 1_800, 5, 3_601])).tolist()
        [1, 1, 0, 2]
    """
    order = np.lexsort((timestamp, user))
    new = np.diff(user[order], prepend=-1) != 0
    new |= np.diff(timestamp[order], prepend=timestamp[order][:1]) > gap
    number = np.empty_like(order)
    number[order] = np.cumsum(new) - 1
    return number


@dataclass(frozen=True, eq=False)
class Histories:
    """Every user's events once, and for each impression which of them came before it.

    Row e of the log has the history `item[start[e]:end[e]]`, oldest first; an empty
    slice is a valid history. The request clock pays for reading it.

    Attributes:
        item: [H] int64, the log's H events sorted by (user, timestamp).
        action: [H] int64, what the user did with each.
        timestamp: [H] int64, seconds.
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
        order, start, end = earlier_events(log.user, log.timestamp, log.event)
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


def _index(known: Features, ids: Sequence | np.ndarray, what: str) -> np.ndarray:
    index = known.index(ids)
    unknown = np.asarray(ids)[index == UNKNOWN].tolist()
    if unknown:
        raise KeyError(f"no such {what}: {unknown[:5]} ({len(unknown)} unknown)")
    return index
