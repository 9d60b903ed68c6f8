"""What a model is fed: requests and impressions, cut from the log and padded.

Histories live once, ragged, in :class:`~recsys_edu.data.interactions.Histories`. A
batch copies out the events its rows need and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_edu.data.coding import UNKNOWN
from recsys_edu.data.interactions import Histories, InteractionLog
from recsys_edu.tree import TensorTree


@dataclass(frozen=True)
class History(TensorTree):
    """B histories of at most N events, oldest first, padded at the end.

    :func:`at_the_end` moves padding there from anywhere else.
    """

    item: Tensor  # [B, N] int64 item index, anything under padding
    action: Tensor  # [B, N] int64 what the user did, anything under padding
    timestamp: Tensor  # [B, N] int64 seconds, anything under padding
    mask: Tensor  # [B, N] bool, True where there is an event


@dataclass(frozen=True)
class Request(TensorTree):
    """B requests: one user, one history and M candidates each.

    Made by :meth:`recsys_edu.dlrm.DLRM.request` from the source's own ids, or of
    indices, as here. Shapes are checked, since a wrong one would broadcast in silence;
    what the numbers mean is checked at the door.

    Raises:
        ValueError: a tensor of another shape, or of numbers that are no integers.

    Example:
        >>> from dataclasses import replace
        >>> none = torch.zeros(1, 0, dtype=torch.int64)
        >>> history = History(none, none, none, none.bool())
        >>> one = Request(
        ...     user=torch.tensor([3]),
        ...     timestamp=torch.tensor([[60]]),
        ...     candidates=torch.tensor([[7, 8]]),
        ...     history=history,
        ... )
        >>> two = Request.stack([one, replace(one, candidates=torch.tensor([[9]]))])
        >>> two.candidates.tolist(), two.shown.tolist()
        ([[7, 8], [9, 0]], [[True, True], [True, False]])
    """

    user: Tensor  # [B] int64 user index
    # When the candidates are shown, in int64 seconds: [B, 1], the time of the request;
    # [B, M] in amortized training, where each impression has its own.
    timestamp: Tensor
    candidates: Tensor  # [B, M] int64 item index
    history: History
    # [B, M] int64, how many leading events each candidate may read; None for all.
    # Serving needs none: the history ends before the request. Amortized training does.
    visible: Tensor | None = None
    # [B, M] bool, True where there is a candidate; None if there is one everywhere.
    # Elsewhere scores are -inf, so that requests of different M share a batch.
    shown: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.user, Tensor):
            return  # PyTorch takes trees apart, and puts them together of other things
        if self.user.dim() != 1 or self.candidates.dim() != 2:
            raise ValueError(
                f"user is {_shape(self.user)}, candidates {_shape(self.candidates)}: "
                "they must be [B] and [B, M]. One request is a batch of one: "
                "request[0:1], or candidates.unsqueeze(0)"
            )
        b, m = self.candidates.shape
        n = self.history.item.shape[-1] if self.history.item.dim() else 0
        wanted = {
            "user": (self.user, [(b,)], "[B]"),
            "timestamp": (self.timestamp, [(b, 1), (b, m)], "[B, 1] or [B, M]"),
            "visible": (self.visible, [(b, m)], "[B, M]"),
            "shown": (self.shown, [(b, m)], "[B, M]"),
            "history.item": (self.history.item, [(b, n)], "[B, N]"),
            "history.action": (self.history.action, [(b, n)], "[B, N]"),
            "history.timestamp": (self.history.timestamp, [(b, n)], "[B, N]"),
            "history.mask": (self.history.mask, [(b, n)], "[B, N]"),
        }
        for name, (tensor, shapes, text) in wanted.items():
            if tensor is not None and tuple(tensor.shape) not in shapes:
                raise ValueError(
                    f"{name} is {_shape(tensor)}: it must be {text}, with B = {b} "
                    f"requests of M = {m} candidates and N = {n} events"
                )
        for name, tensor in (("user", self.user), ("candidates", self.candidates)):
            if tensor.dtype not in (torch.int64, torch.int32):
                raise ValueError(f"{name} is {tensor.dtype}: an index is an int64")

    @property
    def items(self) -> Tensor:
        """[B, M] the candidates, and UNKNOWN where none is shown, whatever is there.

        All of them can be embedded, and are in every link index.
        """
        if self.shown is None:
            return self.candidates
        return self.candidates.where(self.shown, UNKNOWN)

    @classmethod
    def stack(cls, requests: Sequence[Request]) -> Request:
        """Several requests as one batch, each padded to the largest N and M.

        Raises:
            ValueError: there is none, or one has ``visible``.
        """
        if not requests or any(r.visible is not None for r in requests):
            raise ValueError("stack() takes one request or more, with visible=None")
        n = max(r.history.item.shape[1] for r in requests)
        m = max(r.candidates.shape[1] for r in requests)

        def wide(name: str, width: int, trees: Sequence[Any]) -> Tensor:
            parts = (getattr(tree, name) for tree in trees)
            return torch.cat([F.pad(t, (0, width - t.shape[1])) for t in parts])

        histories = [r.history for r in requests]
        shown = [torch.ones_like(r.candidates, dtype=torch.bool) for r in requests]
        shown = [
            ones if r.shown is None else r.shown
            for r, ones in zip(requests, shown, strict=True)
        ]
        return cls(
            user=torch.cat([r.user for r in requests]),
            timestamp=torch.cat([r.timestamp for r in requests]),
            candidates=wide("candidates", m, requests),
            history=History(*(wide(f.name, n, histories) for f in fields(History))),
            shown=torch.cat([F.pad(s, (0, m - s.shape[1])) for s in shown]),
        )


def hide(scores: Tensor, shown: Tensor | None) -> Tensor:
    """Scores [B, M] with -inf where no candidate is shown, which nothing ranks below.

    Args:
        shown: as in :class:`Request`; None if all are.
    """
    return scores if shown is None else scores.masked_fill(~shown, float("-inf"))


def at_the_end(history: History) -> History:
    """The same histories with the events first and all padding at the end."""
    order = (~history.mask).long().argsort(dim=1, stable=True)
    return history.map(lambda tensor: tensor.gather(1, order))


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


@dataclass(frozen=True)
class Impressions(TensorTree):
    """Requests whose outcome is known."""

    request: Request
    label: Tensor  # [B, M] float32 in {0, 1}
    row: Tensor  # [B, M] int64 row of the log, -1 under padding


def pad_histories(
    histories: Histories, start: np.ndarray, end: np.ndarray, max_events: int
) -> History:
    """Copies the last ``max_events`` events of each slice [start, end) to a rectangle.

    The rectangle is as wide as its longest history, so N <= max_events; N = 0 is valid.

    Args:
        histories: the ragged events.
        start, end: [B] ranges of events, as in ``histories.start`` and ``.end``.
        max_events: the most recent events to keep, >= 0.

    Raises:
        ValueError: ``max_events`` is negative.
    """
    if max_events < 0:
        raise ValueError(f"max_events is {max_events}; it must be 0 or more")
    length = np.minimum(end - start, max_events)  # [B]
    column = np.arange(length.max(initial=0))  # [N]
    mask = column < length[:, None]  # [B, N]
    event = np.where(mask, (end - length)[:, None] + column, 0)

    def gather(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.where(mask, values[event], 0))

    return History(
        item=gather(histories.item),
        action=gather(histories.action),
        timestamp=gather(histories.timestamp),
        mask=torch.from_numpy(mask),
    )


def random_request(log: InteractionLog, n: int, m: int, *, seed: int) -> Request:
    """One user with n events and m candidates, all drawn at random (B = 1).

    For counting and timing, where shapes matter and content does not: events come an
    hour apart, from items and actions that the log knows.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(end: int, size: int) -> Tensor:
        return torch.randint(end, (1, size), generator=generator)

    return Request(
        user=draw(log.n_users, 1)[0],
        timestamp=torch.tensor([[3600 * n]]),
        candidates=draw(log.n_items, m),
        history=History(
            item=draw(log.n_items, n),
            action=draw(log.n_actions, n),
            timestamp=3600 * torch.arange(n)[None],
            mask=torch.ones(1, n, dtype=torch.bool),
        ),
    )


def impressions_at(
    log: InteractionLog, histories: Histories, rows: np.ndarray, max_events: int
) -> Impressions:
    """The impressions in ``rows`` of the log, one candidate (M = 1) each.

    Args:
        log: the impression log.
        histories: ``Histories.from_log(log)``.
        rows: [B] row numbers of the log.
        max_events: the most recent events of history to keep; 0 for none.
    """
    request = Request(
        user=torch.from_numpy(log.user[rows]),
        timestamp=torch.from_numpy(log.timestamp[rows])[:, None],
        candidates=torch.from_numpy(log.item[rows])[:, None],
        history=pad_histories(
            histories, histories.start[rows], histories.end[rows], max_events
        ),
    )
    label, row = torch.from_numpy(log.label[rows]), torch.from_numpy(rows)
    return Impressions(request, label[:, None], row[:, None])


def batches(
    log: InteractionLog,
    histories: Histories,
    rows: np.ndarray,
    *,
    batch_size: int,
    max_events: int,
    generator: np.random.Generator | None = None,
) -> Iterator[Impressions]:
    """Yields ``rows`` as requests, ``batch_size`` in a batch, shuffled by a generator.

    Rows of one request of the log that share a second, and so a history, are one batch
    row: the ``max_events`` events before them, read once, and their items as M
    candidates. Where a log tells no requests apart, or no event is read that they could
    share, each row is one, M = 1. Requests of like M share a batch, so that little is
    padding; one batch may be smaller. No row is dropped and none is repeated.
    """
    if log.request is None or max_events == 0:
        first, m = np.arange(len(rows)), np.ones(len(rows), np.int64)
    else:
        alike = np.stack([log.timestamp, histories.end, log.request])[:, rows]
        order = np.lexsort(alike)
        rows, alike = rows[order], alike[:, order]
        new = (np.diff(alike, prepend=-1) != 0).any(0)
        first = np.flatnonzero(new)  # [R], of each request
        m = np.diff(first, append=len(rows))
    order = np.arange(len(first))
    if generator is not None:
        order = generator.permutation(order)
    order = order[np.argsort(m[order], kind="stable")]
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if generator is not None:
        generator.shuffle(groups)
    for group in groups:
        one = rows[first[group]]
        start = np.maximum(histories.start[one], histories.end[one] - max_events)
        yield _side_by_side(
            log, histories, rows, first[group], m[group], start, histories.end[one]
        )


def user_batches(
    log: InteractionLog,
    histories: Histories,
    rows: np.ndarray,
    *,
    max_tokens: int,
    max_events: int | None = None,
    max_candidates: int | None = None,
    generator: np.random.Generator | None = None,
) -> Iterator[Impressions]:
    """Yields ``rows`` with a user's impressions side by side: amortized training.

    A user's impressions are cut, in time order, into runs of ``max_candidates``. A run
    is one batch row: the ``max_events`` events before its first impression, the events
    from there to its last, its impressions as M candidates, and for each of them its
    time and how many of the events it may read. None stands for all.

    Runs of like size share a batch, as many as keep runs x (N + M) within
    ``max_tokens``; a run that needs more is a batch alone. No row is lost. A generator
    shuffles the runs among those of their size, and the order of the batches.

    Raises:
        ValueError: ``max_events`` is negative or ``max_candidates`` is not positive.

    Example:
        >>> from recsys_edu.data.synthetic import planted_world
        >>> log = planted_world(seed=0, n_impressions=90, n_users=3, n_items=9).log
        >>> histories, rows = Histories.from_log(log), np.arange(90)
        >>> batch = next(user_batches(log, histories, rows, max_tokens=200))
        >>> batch.request.visible[0, :4].tolist()  # each sees what came before it
        [0, 1, 2, 3]
    """
    max_events = len(log) if max_events is None else max_events
    max_candidates = len(log) if max_candidates is None else max_candidates
    if max_events < 0 or max_candidates < 1:
        raise ValueError(
            f"max_events is {max_events}, must be 0 or more; "
            f"max_candidates is {max_candidates}, must be 1 or more"
        )
    rows = rows[np.lexsort((histories.end[rows], log.user[rows]))]
    _, begin, count = np.unique(log.user[rows], return_index=True, return_counts=True)
    place = np.arange(len(rows)) - np.repeat(begin, count)  # among the user's rows
    first = np.flatnonzero(place % max_candidates == 0)  # [R], of each run
    m = np.diff(first, append=len(rows))
    end = histories.end[rows[first + m - 1]]
    start = np.maximum(
        histories.start[rows[first]], histories.end[rows[first]] - max_events
    )
    n = end - start
    order = np.arange(len(first))
    if generator is not None:
        order = generator.permutation(order)
    groups: list[list[int]] = []
    widest = most = 0
    for run in order[np.argsort((n + m)[order], kind="stable")].tolist():
        widest, most = max(widest, n[run]), max(most, m[run])
        if not groups or (len(groups[-1]) + 1) * (widest + most) > max_tokens:
            groups.append([])
            widest, most = n[run], m[run]
        groups[-1].append(run)
    if generator is not None:
        generator.shuffle(groups)
    for group in groups:
        yield _side_by_side(
            log, histories, rows, first[group], m[group], start[group], end[group], True
        )


def _side_by_side(
    log: InteractionLog,
    histories: Histories,
    rows: np.ndarray,
    first: np.ndarray,
    m: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    prefixes: bool = False,
) -> Impressions:
    """Runs of ``rows`` as batch rows, M candidates each, padded to the longest.

    Args:
        first, m: [B] where in ``rows`` each run begins, and how many it has.
        start, end: [B] each run's events, as in ``histories.start`` and ``.end``.
        prefixes: each candidate reads the events before it, at a time of its own.
    """
    column = np.arange(m.max())
    real = column < m[:, None]  # [B, M]
    at = rows[first[:, None] + np.where(real, column, 0)]
    time, visible = log.timestamp[at[:, :1]], None
    if prefixes:
        time = log.timestamp[at]
        visible = torch.from_numpy(histories.end[at] - start[:, None])
    request = Request(
        user=torch.from_numpy(log.user[at[:, 0]]),
        timestamp=torch.from_numpy(time),
        candidates=torch.from_numpy(log.item[at]),
        history=pad_histories(histories, start, end, len(log)),
        visible=visible,
    )
    row = torch.from_numpy(np.where(real, at, -1))
    return Impressions(request, torch.from_numpy(log.label[at]), row)
