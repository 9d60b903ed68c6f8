"""The planted world: a log whose click probabilities, and so whose best AUC, are known.

Every item has a topic k and a quality; every user has a segment, which a model may
read, and a taste for each topic, which it may not::

    logit p = bias + quality[item] + strength * taste[user, topic[item]]
    taste[user, k] = rho * lean[segment, k] + sqrt(1 - rho^2) * z[user, k],  z ~ N(0, 1)

Labels are drawn from p. The private part z shows only in what the user clicked, so the
best guess from any amount of history is a posterior mean. Tastes are independent across
topics, so that mean is an integral over one number, computed here by quadrature. Three
ceilings follow: without history, with the last N events, and with p itself.

Topics come in any order, or one at a time: a user may stay with one for a while and
come back to it only after all the others, so that long histories decide.

A request shows one item, or several side by side. Whatever was shown becomes an event,
clicked or not, once its second is over: a skip says as much as a click.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_expit

from recsys_edu.data.features import Features
from recsys_edu.data.interactions import (
    Histories,
    InteractionLog,
    earlier_events,
)

DAY = 86_400


@dataclass(frozen=True, eq=False)
class PlantedWorld:
    """A log, and the click model that made it."""

    log: InteractionLog
    probability: np.ndarray  # [E] p of each row's label being 1
    public_logit: np.ndarray  # [E] logit p at z = 0: all that segment and item tell
    private_strength: float  # weight of z in the logit
    topic: np.ndarray  # [I] of each item

    def best_guess(
        self, histories: Histories, max_events: int | None = None
    ) -> np.ndarray:
        """The best click probability a model can give, E[p | what it may know], [E].

        It may know the user's segment, the item, the whole click model, and of the
        user's strictly earlier events the last ``max_events`` (all by default, none
        if 0): no other model of the same inputs has a higher expected AUC.

        With the row's topic k and the density w of N(0, 1)::

            E[p] = integral of w(z) L(z) sigmoid(public + strength z) dz
                   / integral of w(z) L(z) dz
            L(z) = product over the known events of topic k of P(their label | z)

        Good to 1e-8. O(E) memory; the time grows with E and with the root of the
        largest number of known events.
        """
        log, strength = self.log, self.private_strength
        first = histories.start
        if max_events is not None:
            first = np.maximum(first, histories.end - max_events)
        by_run, _, begin, end = self._of_topic(first, histories.end)
        sign = np.where(log.label[by_run] == 1, 1.0, -1.0)
        public = self.public_logit[by_run]
        # Trapezoid rule over the bell w L. Its width is 1 / sqrt(curvature of its log):
        # w has curvature 1, and each known event adds at most strength^2 / 4. With
        # strength 1.5, no bell of 0, 10 and 100 events is narrower than 1, .39, .13.
        # Steps of half a width are off by 1e-9. Beyond |z| = 8 lies 1e-15.
        width = 1 / np.sqrt(1 + strength**2 * ((end - begin).max() + 1) / 4)
        n_steps = int(np.ceil(8 / (width / 2)))
        log_total = np.full(len(log), -np.inf)  # of the two integrals, up to a factor
        log_click = np.full(len(log), -np.inf)
        log_likelihood = np.zeros(len(log) + 1)  # running sums over `by_run`
        for z in np.linspace(-8, 8, 2 * n_steps + 1):
            np.cumsum(log_expit(sign * (public + strength * z)), out=log_likelihood[1:])
            log_density = log_likelihood[end] - log_likelihood[begin] - z**2 / 2
            log_p = log_expit(self.public_logit + strength * z)
            log_total = np.logaddexp(log_total, log_density)
            log_click = np.logaddexp(log_click, log_density + log_p)
        return np.exp(log_click - log_total)

    def absence(self, histories: Histories) -> np.ndarray:
        """How many events ago the row's topic was last seen, [E] int64.

        0 if the newest event of the history is of the row's topic; -1 if none is. Where
        it is r or more, the last r events hold none of the topic: a model that reads
        only these knows as much of the row as one that reads nothing.
        """
        _, rank, begin, end = self._of_topic(histories.start, histories.end)
        away = histories.end - 1 - rank[end - 1]
        return np.where(begin < end, away, -1)

    def _of_topic(
        self, first: np.ndarray, end: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The events of each row's topic among the events [first, end) of its user.

        Args:
            first, end: [E] ranges of events, as in ``histories.start`` and ``.end``.

        Returns:
            Rows [E] in runs of one user and topic, oldest first; where each of them
            stands in ``histories``, [E]; and the slice of the run that each row of the
            log asked for, from [E] to [E].
        """
        log = self.log
        order = np.lexsort((log.timestamp, log.user))
        rank = np.empty(len(log), np.int64)
        rank[order] = np.arange(len(log))  # where each row stands in `histories`
        run = log.user * (self.topic.max() + 1) + self.topic[log.item]  # [E]
        by_run = np.lexsort((rank, run))
        # Runs, and ranks within them, increase along `by_run`: so does this key.
        key = run[by_run] * len(log) + rank[by_run]
        begin, end = (
            np.searchsorted(key, run * len(log) + edge) for edge in (first, end)
        )
        return by_run, rank[by_run], begin, end


def planted_world(
    *,
    seed: int,
    n_impressions: int = 100_000,
    n_users: int = 1_000,
    n_items: int = 1_000,
    n_topics: int = 8,
    n_segments: int = 4,
    n_days: int = 200,
    bias: float = -1.0,
    strength: float = 1.5,
    rho: float = 0.4,
    quality: float = 0.5,
    dwell: int = 0,
    candidates: int = 1,
) -> PlantedWorld:
    """Draws a planted world; the same arguments give the same world.

    Users arrive all through the ``n_days`` and stay for a tenth of them, so a split by
    time tests on users that training never saw. Activity of users and popularity of
    items have long tails (log-normal and Zipf). No array is larger than
    [n_impressions] or [n_users, n_topics], so sizes may be internet-like.

    Args:
        strength, rho: of taste, and its share that the segment tells.
        quality: standard deviation of the items' quality.
        dwell: for how many impressions a user stays with a topic before the next one,
            in an order of their own; the first comes again after all others, that is
            after (n_topics - 1) dwell events. 0: every impression's topic is that of an
            item drawn from all.
        candidates: M, how many different items a request shows to its user in one
            second, each with a label of its own. There are n_impressions / M requests.
            With 1, ``log.request`` is None.

    Raises:
        ValueError: users dwell on topics, and there is a topic without an item, or M is
            not 1; M does not divide the impressions, or is over half of the items.
    """
    _require_candidates(candidates, n_impressions, n_items, dwell)
    rng = np.random.default_rng(seed)
    topic = rng.integers(n_topics, size=n_items)
    item_quality = rng.normal(scale=quality, size=n_items)
    segment = rng.integers(n_segments, size=n_users)
    lean = rng.normal(size=(n_segments, n_topics))
    private = rng.normal(size=(n_users, n_topics))
    arrival = rng.uniform(0, 0.9 * n_days, size=n_users)  # days

    activity = rng.lognormal(sigma=1.0, size=n_users)
    n_requests = n_impressions // candidates
    user = rng.choice(n_users, size=n_requests, p=activity / activity.sum())
    popularity = 1 / np.arange(1, n_items + 1)
    share = popularity / popularity.sum()
    item = rng.choice(n_items, size=n_impressions, p=share)
    day = arrival[user] + rng.uniform(0, 0.1 * n_days, size=n_requests)
    user, timestamp = (
        np.repeat(column, candidates) for column in (user, (day * DAY).astype(np.int64))
    )
    request = None
    if candidates > 1:
        request = np.repeat(np.arange(n_requests), candidates)
        while len(again := repeated(request, item)):
            item[again] = rng.choice(n_items, size=len(again), p=share)
    if dwell:
        tour = rng.permuted(np.tile(np.arange(n_topics), (n_users, 1)), axis=1)
        place = _place(user, timestamp)
        wanted = tour[user, place // dwell % n_topics]
        item = _draw_of_topic(rng, wanted, n_topics, topic, popularity)

    public_logit = (
        bias + item_quality[item] + strength * rho * lean[segment[user], topic[item]]
    )
    private_strength = strength * np.sqrt(1 - rho**2)
    probability = expit(public_logit + private_strength * private[user, topic[item]])
    label = (rng.random(n_impressions) < probability).astype(np.float32)

    order = np.argsort(timestamp, kind="stable")
    log = InteractionLog(
        user=user[order],
        item=item[order],
        timestamp=timestamp[order],
        label=label[order],
        action=label[order].astype(np.int64),
        users=_sparse_features(user_id=np.arange(n_users), segment=segment),
        items=_sparse_features(item_id=np.arange(n_items), topic=topic),
        item_titles=None,
        actions=(0, 1),
        name="planted world",
        request=request,  # sorted: requests move whole, and are numbered anew
    )
    return PlantedWorld(
        log, probability[order], public_logit[order], private_strength, topic
    )


def repeated(request: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The rows, of any order, whose item an earlier row of their request has."""
    order = np.lexsort((item, request))  # stable: equal rows keep their order
    same = (np.diff(request[order]) == 0) & (np.diff(item[order]) == 0)
    return order[1:][same]


def _require_candidates(
    candidates: int, n_impressions: int, n_items: int, dwell: int
) -> None:
    if candidates < 1 or n_impressions % candidates:
        raise ValueError(
            f"{n_impressions} impressions are no requests of {candidates} candidates: "
            "take a divisor"
        )
    if candidates > 1 and 2 * candidates > n_items:
        raise ValueError(
            f"{candidates} different candidates are over half of the {n_items} items: "
            "show fewer, or draw more items"
        )
    if candidates > 1 and dwell:
        raise ValueError(
            "a user who dwells on a topic is shown one item at a time: set candidates "
            "to 1, or dwell to 0"
        )


def _place(user: np.ndarray, timestamp: np.ndarray) -> np.ndarray:
    """How many events of its user stand before each row in ``Histories``, [E]."""
    order, start, _ = earlier_events(user, timestamp)
    place = np.empty_like(order)
    place[order] = np.arange(len(order)) - start[order]
    return place


def _draw_of_topic(
    rng: np.random.Generator,
    wanted: np.ndarray,
    n_topics: int,
    topic: np.ndarray,
    popularity: np.ndarray,
) -> np.ndarray:
    """An item of each wanted topic [E], drawn by its popularity among the topic's."""
    by_topic = np.argsort(topic, kind="stable")
    size = np.bincount(topic, minlength=n_topics)
    if (size == 0).any():
        raise ValueError(
            f"topic {size.argmin()} has none of the {len(topic)} items, and users are "
            "to dwell on it: draw more items, or fewer topics"
        )
    # The items of a topic share a stretch of this line, each by its popularity.
    line = np.cumsum(popularity[by_topic])
    last = np.cumsum(size) - 1
    edge = np.append(0, line[last])
    at = rng.uniform(edge[wanted], edge[wanted + 1])
    # A draw that is rounded up to its edge is still of its topic.
    return by_topic[np.minimum(np.searchsorted(line, at, side="right"), last[wanted])]


def _sparse_features(**columns: np.ndarray) -> Features:
    """Sparse features from columns of values v >= 0, kept as v + 1 (0: unknown)."""
    categories = {name: np.arange(c.max() + 1) for name, c in columns.items()}
    size = len(next(iter(columns.values())))
    return Features.fit(np.arange(size), sparse=columns, categories=categories)
