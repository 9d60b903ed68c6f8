"""What a ranker is asked on a log: two tasks, each with its requests, split by time.

========== ============================== ====================================
task       question                       a request
========== ============================== ====================================
rating     will the user like an item     the items that a user judged in one
           that was chosen to be judged?  sitting
next item  which of K items does the      one taken item, and K - 1 others that
           user take next?                the user has not had
========== ============================== ====================================

Of a rating, history knows mostly *who* judges: some like most of what they see. That
moves no item of a request past another. Of the next item, a constant of the user says
nothing at all: one item of each request is taken, whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recsys_edu.data.interactions import Histories, InteractionLog
from recsys_edu.data.splits import Split, split_by_time

Draw = Literal["popularity", "uniform"]
"""How the items beside the taken one are drawn, see :func:`next_item`."""

ROUNDS = 50
"""Draws of one item before it is looked for among all that are left."""


@dataclass(frozen=True, eq=False)
class Task:
    """A log of requests, what each row may read, and which rows train and judge."""

    name: str
    log: InteractionLog
    histories: Histories
    split: Split


def rating(log: InteractionLog) -> Task:
    """The log's own rows and labels, split by time.

    Which rows share a request is the log's to say; each row reads what came strictly
    before it, earlier rows of its request too. So, of two rows of a sitting, the one
    that was liked less is judged with the better past: a running rate of likes, which
    knows no item, orders a sitting a little the wrong way round.
    """
    return Task("rating", log, Histories.from_log(log), split_by_time(log))


def next_item(
    log: InteractionLog,
    *,
    train: int = 5,
    test: int = 100,
    draw: Draw = "popularity",
    seed: int = 0,
) -> Task:
    """One request for each event: the item that was taken, and K - 1 that were not.

    The taken item is the request's one positive row and its one event, so histories are
    those of ``log``. The others are distinct, and none is an item that the user has had
    or takes in the same second; one that the user takes later may be among them. Where
    the taken one stands is drawn too. The split is by time, as in ``split_by_time``.

    How the others are drawn decides what is asked::

        "popularity"  as often as anybody took them, in earlier seconds. Popularity
                      then tells the taken item from the others no more.
        "uniform"     each item of the catalogue alike. Most are little known, so that
                      popularity alone tells much, and a history less beside it.

    Where a draw by popularity keeps meeting what the user has had, as in the first
    minutes of a log, it is made uniformly among all that are left.

    Two things tell the taken item without a ranker: that the user has had it, where
    items are taken again, and, beside draws by popularity, that nobody took it before.

    Args:
        log: rows that are no events are left out.
        train, test: K, items of a request; validation has as many as training.
        seed: of all draws.

    Raises:
        ValueError: K is less than 2, there is no such draw, or a user has had so much
            of the catalogue that fewer than K - 1 items are left.

    Example:
        >>> from recsys_edu.data.synthetic import planted_world
        >>> log = planted_world(seed=0, n_impressions=90, n_users=3).log
        >>> task = next_item(log, train=3, test=5)
        >>> np.bincount(task.log.request)[[0, -1]].tolist()  # rows of a request
        [3, 5]
    """
    if min(train, test) < 2:
        raise ValueError(
            f"{train} and {test} candidates: a request needs 2 or more to be ranked"
        )
    if draw not in ("popularity", "uniform"):
        raise ValueError(f"draw is {draw!r}; it must be 'popularity' or 'uniform'")
    taken = np.arange(len(log)) if log.event is None else np.flatnonzero(log.event)
    events = _rows(log, taken)
    split = split_by_time(events)
    size = np.full(len(taken), train)
    size[split.test] = test
    rng = np.random.default_rng(seed)
    others = {k: size == k for k in {train, test}}
    first = np.cumsum(size) - size  # row of the new log where each request begins
    request = np.repeat(np.arange(len(taken)), size)
    at = first + rng.integers(size)
    event = np.zeros(len(request), np.bool_)
    event[at] = True
    item = np.empty(len(request), np.int64)
    item[at] = events.item
    for k, which in others.items():
        drawn = _not_had(events, np.flatnonzero(which), k - 1, draw, rng)
        item[~event & which[request]] = drawn.ravel()
    requests = InteractionLog(
        user=events.user[request],
        item=item,
        timestamp=events.timestamp[request],
        label=event.astype(np.float32),
        action=np.where(event, events.action[request], 0),  # of no event, never read
        users=log.users,
        items=log.items,
        item_titles=log.item_titles,
        actions=log.actions,
        name=f"{log.name}, next item",
        request=request,
        event=event,
    )
    parts = (np.isin(request, part) for part in (split.train, split.validation))
    rows = [np.flatnonzero(part) for part in parts]
    rows.append(np.arange(first[split.test[0]], len(request)))
    return Task("next item", requests, Histories.from_log(requests), Split(*rows))


def _rows(log: InteractionLog, rows: np.ndarray) -> InteractionLog:
    """A log of some rows of another, all of them events."""
    columns = ("user", "item", "timestamp", "label", "action")
    return InteractionLog(
        **{name: getattr(log, name)[rows] for name in columns},
        users=log.users,
        items=log.items,
        item_titles=log.item_titles,
        actions=log.actions,
        name=log.name,
    )


def _not_had(
    log: InteractionLog,
    rows: np.ndarray,
    count: int,
    draw: Draw,
    rng: np.random.Generator,
) -> np.ndarray:
    """Distinct items for each row that its user has not had by then, [rows, count]."""
    user, now = log.user[rows], log.timestamp[rows]
    pair, first = np.unique(log.user * log.n_items + log.item, return_index=True)
    since = log.timestamp[first]  # the log is in time order: when a pair is first seen

    def had(row: np.ndarray, item: np.ndarray) -> np.ndarray:
        key = user[row] * log.n_items + item
        at = np.searchsorted(pair, key).clip(max=len(pair) - 1)
        return (pair[at] == key) & (since[at] <= now[row])

    before = np.searchsorted(log.timestamp, now)  # events of earlier seconds
    found = np.full((len(rows), count), -1)
    for _ in range(ROUNDS):
        row, column = np.nonzero(found < 0)
        if len(row) == 0:
            return found
        if draw == "uniform":
            item = rng.integers(log.n_items, size=len(row))
        else:
            item = log.item[(rng.random(len(row)) * before[row]).astype(np.int64)]
        item[had(row, item) | (before[row] == 0) & (draw == "popularity")] = -1
        found[row, column] = item
        some = np.unique(row)
        found[some] = _once(found[some])
    for row in np.unique(np.nonzero(found < 0)[0]):
        catalogue = np.arange(log.n_items)
        left = catalogue[~had(np.full(log.n_items, row), catalogue)]
        left = np.setdiff1d(left, found[row])
        open_ = np.flatnonzero(found[row] < 0)
        if len(left) < len(open_):
            who = log.user_ids[user[row]]
            raise ValueError(
                f"log {log.name!r}: user {who} has had so many of the "
                f"{log.n_items:,} items by {now[row]} that not {count} others are "
                "left: ask for fewer candidates"
            )
        found[row, open_] = rng.choice(left, len(open_), replace=False)
    return found


def _once(items: np.ndarray) -> np.ndarray:
    """Items [R, K] with -1 in place of all but one of those that a row has twice."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    np.put_along_axis(items, order, ordered, axis=1)
    return items
