"""A world of several interests at once, and the best that can be made of a history.

A user is interested in j of K topics, any of them alike. Each event takes an item, and
all items of a topic are alike::

    P(topic k | interests S) = (1 - stray) [k in S] / j + stray / K

A request shows M items: the one that is taken, and M - 1 others of the catalogue, each
with equal chance. So no item is more popular than another, and without a history there
is nothing to know.

By Bayes, a candidate is the taken one with chance P(its topic | what is known) over the
sum of that for all M. Known are the interests, or else events. Of events, all C(K, j)
sets of interests are summed over, for every j: a set enters as a product over its
topics, so that the sum is an elementary symmetric polynomial, which costs j K and not
C(K, j).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, logsumexp

from recsys_edu.data.features import Features
from recsys_edu.data.interactions import Histories, InteractionLog
from recsys_edu.data.synthetic import repeated

HOUR = 3_600
CHUNK = 1 << 14
"""Rows whose histories are looked at side by side, which bounds the memory."""


@dataclass(frozen=True, eq=False)
class InterestWorld:
    """A log of requests, and the choice model that made it.

    Attributes:
        log: a row for each candidate of each request. The taken one has label 1 and is
            an event. What a user took before the first request stands in rows of their
            own, to be read in histories: requests with one candidate.
        topic: [I] of each item, in 0 .. K - 1.
        interests: [U, J] topics of each user, -1 behind the last.
        counts: how many interests a user may have, each number alike.
        stray: share of events that follow no interest.
    """

    log: InteractionLog
    topic: np.ndarray
    interests: np.ndarray
    counts: tuple[int, ...]
    stray: float

    @property
    def n_topics(self) -> int:
        """K."""
        return int(self.topic.max()) + 1

    @property
    def n_interests(self) -> np.ndarray:
        """J, how many interests each user has, [U]."""
        return (self.interests >= 0).sum(axis=1)

    @property
    def asked(self) -> np.ndarray:
        """[E] bool, the rows of requests with a choice: M > 1."""
        return np.bincount(self.log.request)[self.log.request] > 1

    def chance(self, rows: np.ndarray) -> np.ndarray:
        """Chance of being the taken one, if the user's interests are known, [R].

        Args:
            rows: [R] of the log, whole requests: the chances of each sum to 1.
        """
        user, topic = self.log.user[rows], self.topic[self.log.item[rows]]
        of_interest = (self.interests[user] == topic[:, None]).any(axis=1)
        p = (1 - self.stray) * of_interest / self.n_interests[user]
        with np.errstate(divide="ignore"):
            return _share(np.log(p + self.stray / self.n_topics), self._request(rows))

    def best_guess(
        self, histories: Histories, rows: np.ndarray, max_events: int | None = None
    ) -> np.ndarray:
        """Chance of being the taken one, if earlier events are known, [R].

        Known are the last ``max_events`` of the user's strictly earlier events (all by
        default, none if 0), and the choice model. To rank by it has the highest
        expected AUC, NDCG, MRR and hit rate in every single request.

        With c_k events of topic k, a_j = (1 - stray) K / j + stray, and up to K^-N::

            P(c) = mean over j of P(c | j)
            P(c | j) = mean over S of size j of  prod_S a_j^c_k  prod_rest stray^c_k

        and a candidate counts as one event more: its chance is P(c + candidate) over
        the sum of that for its request. Exact but for rounding, in O(R N J) time.

        Args:
            rows: [R] of the log, whole requests: the chances of each sum to 1.
        """
        start, end = histories.start[rows], histories.end[rows]
        if max_events is not None:
            start = np.maximum(start, end - max_events)
        past, now = self.topic[histories.item], self.topic[self.log.item[rows]]
        log_p = np.empty(len(rows))
        for first in range(0, len(rows), CHUNK):
            part = slice(first, first + CHUNK)
            column = np.arange((end - start)[part].max())
            place = start[part, None] + column
            real = place < end[part, None]
            topics = np.where(real, past[np.where(real, place, 0)], self.n_topics)
            topics = np.concatenate([topics, now[part, None]], axis=1)
            log_p[part] = self._log_evidence(np.sort(topics, axis=1))
        return _share(log_p, self._request(rows))

    def _log_evidence(self, topics: np.ndarray) -> np.ndarray:
        """log P(c) + N log K of sorted topics [R, N], of K or more for padding."""
        k, (rows, width) = self.n_topics, topics.shape
        with np.errstate(divide="ignore"):
            stray = np.log(self.stray)
        own = {j: np.log((1 - self.stray) * k / j + self.stray) for j in self.counts}
        # log of the sums over sets of 0 .. j of the topics seen so far.
        sums = {j: np.full((j + 1, rows), -np.inf) for j in self.counts}
        for each in sums.values():
            each[0] = 0
        count, seen = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        following = np.append(topics[:, 1:], np.full((rows, 1), k + 1), axis=1)
        for n in range(width):
            count += 1
            last = topics[:, n] != following[:, n]
            at = np.flatnonzero(last & (topics[:, n] < k))
            seen[at] += 1
            for j, each in sums.items():
                with_it = each[:-1, at] + count[at] * own[j]
                each[:, at] += count[at] * stray
                each[1:, at] = np.logaddexp(each[1:, at], with_it)
            count[last] = 0
        # The rest of S are topics that were not seen: a factor of 1 each.
        total = []
        for j, each in sums.items():
            rest = _log_choose(k - seen, j - np.arange(j + 1)[:, None])
            total.append(logsumexp(each + rest, axis=0) - _log_choose(k, j))
        return logsumexp(total, axis=0)

    def _request(self, rows: np.ndarray) -> np.ndarray:
        """Requests of the rows, numbered from 0 without a gap."""
        request = self.log.request[rows]
        numbers, size = np.unique(request, return_counts=True)
        if (size < np.bincount(self.log.request)[numbers]).any():
            raise ValueError(
                "these rows hold a part of a request: the chances are of all its "
                "candidates, so take whole requests"
            )
        return np.searchsorted(numbers, request)


def interest_world(
    *,
    seed: int,
    n_users: int,
    n_topics: int = 256,
    items_per_topic: int = 10,
    interests: Sequence[int] = (1, 2, 4, 8),
    n_before: int = 40,
    n_requests: int = 8,
    candidates: int | np.ndarray = 5,
    stray: float = 0.2,
) -> InterestWorld:
    """Draws a world of several interests; the same arguments give the same world.

    A user takes an item an hour: ``n_before`` of them unasked, then one from each of
    ``n_requests`` requests, in a place that is drawn. An item may be taken again.

    Args:
        interests: how many interests a user may have, each number alike.
        candidates: M, of all users or of each, [n_users]: few candidates train a
            ranker, many judge it.
        stray: share of events that follow no interest.

    Raises:
        ValueError: more interests than topics, no interest, a share outside 0 .. 1, a
            request without a choice, or of more than half of the items.

    Example:
        >>> world = interest_world(seed=0, n_users=9, n_topics=30, candidates=4)
        >>> rows = np.flatnonzero(world.asked)
        >>> p = world.best_guess(Histories.from_log(world.log), rows)
        >>> np.bincount(world.log.request[rows], p)[-3:].round(9).tolist()
        [1.0, 1.0, 1.0]
    """
    n_items = n_topics * items_per_topic
    m = np.broadcast_to(candidates, n_users)
    if not 1 <= min(interests) <= max(interests) <= n_topics:
        raise ValueError(
            f"interests are {tuple(interests)}: each must lie in 1 .. {n_topics}, the "
            "number of topics"
        )
    if not 0 <= stray <= 1:
        raise ValueError(f"stray is {stray}: a share lies in 0 .. 1")
    if m.min() < 2 or 2 * m.max() > n_items:
        raise ValueError(
            f"candidates are {m.min()} to {m.max()}: show 2 at least, and at most half "
            f"of the {n_items} items"
        )
    rng = np.random.default_rng(seed)
    j = rng.choice(np.asarray(interests), size=n_users)
    own = np.argsort(rng.random((n_users, n_topics)), axis=1)[:, : max(interests)]
    own = np.where(np.arange(own.shape[1]) < j[:, None], own, -1)

    shape = (n_users, n_before + n_requests)
    wanted = np.take_along_axis(own, rng.integers(j[:, None], size=shape), axis=1)
    strays = rng.random(shape) < stray
    wanted = np.where(strays, rng.integers(n_topics, size=shape), wanted)
    taken = wanted + n_topics * rng.integers(items_per_topic, size=shape)
    hour = rng.integers(100 * 24, size=(n_users, 1)) + np.arange(shape[1])

    size = np.ones(shape, np.int64)  # candidates of each request
    size[:, n_before:] = m[:, None]
    size = size.ravel()
    request = np.repeat(np.arange(len(size)), size)
    label = np.zeros(len(request), np.float32)
    label[np.cumsum(size) - size] = 1
    item = rng.integers(n_items, size=len(request))
    item[label == 1] = taken.ravel()
    while len(again := repeated(request, item)):
        item[again] = rng.integers(n_items, size=len(again))
    # Until here the taken one is the first of its request, so it is never drawn again.
    order = np.lexsort((rng.random(len(request)), request))
    request, item, label = request[order], item[order], label[order]
    topic = np.arange(n_items) % n_topics
    log = InteractionLog.from_unsorted(
        user=request // shape[1],
        item=item,
        timestamp=hour.ravel()[request] * HOUR,
        label=label,
        action=np.zeros(len(request), np.int64),
        request=request,
        event=label == 1,
        users=_features(user_id=np.arange(n_users)),
        items=_features(item_id=np.arange(n_items), topic=topic),
        item_titles=None,
        actions=("take",),
        name="world of interests",
    )
    return InterestWorld(log, topic, own, tuple(interests), stray)


def _features(**columns: np.ndarray) -> Features:
    return Features.fit(np.arange(len(next(iter(columns.values())))), sparse=columns)


def _log_choose(n: np.ndarray | int, m: np.ndarray | int) -> np.ndarray:
    """Log of C(n, m) for m >= 0; -inf where m > n."""
    left = np.maximum(np.subtract(n, m), 0)
    value = gammaln(np.add(n, 1)) - gammaln(np.add(m, 1)) - gammaln(left + 1)
    return np.where(np.greater(m, n), -np.inf, value)


def _share(log_p: np.ndarray, request: np.ndarray) -> np.ndarray:
    """exp(log_p) over its sum in the same request, [R]."""
    most = np.full(request.max(initial=-1) + 1, -np.inf)
    np.maximum.at(most, request, log_p)
    p = np.exp(log_p - most[request])
    return p / np.bincount(request, p)[request]
