"""What a model is fed: requests and impressions, cut from the log and padded.

Histories live once, ragged, in :class:`~recsys_edu.data.interactions.Histories`. A
batch copies out the events its rows need and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys_edu.data.interactions import Histories, InteractionLog
from recsys_edu.tree import TensorTree


@dataclass(frozen=True)
class History(TensorTree):
    """B histories of at most N events, oldest first, padded on either side.

    The package pads at the end; padding before the events is read the same.
    """

    item: Tensor  # [B, N] int64 item index, 0 under padding
    action: Tensor  # [B, N] int64 what the user did, 0 under padding
    timestamp: Tensor  # [B, N] int64 seconds, 0 under padding
    mask: Tensor  # [B, N] bool, True where there is an event


@dataclass(frozen=True)
class Request(TensorTree):
    """B requests: one user, one history and M candidates each."""

    user: Tensor  # [B] int64 user index
    # When the candidates are shown, in int64 seconds: [B, 1], the time of the request;
    # [B, M] in amortized training, where each impression has its own.
    timestamp: Tensor
    candidates: Tensor  # [B, M] int64 item index
    history: History
    # [B, M] int64, how many leading events each candidate may read; None for all.
    # Serving needs none: the history ends before the request. Amortized training does.
    visible: Tensor | None = None


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
    """Yields ``rows`` in batches, shuffled if a generator is given.

    The last batch holds what is left. No row is dropped and none is repeated.
    """
    if generator is not None:
        rows = generator.permutation(rows)
    for first in range(0, len(rows), batch_size):
        yield impressions_at(
            log, histories, rows[first : first + batch_size], max_events
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
        column = np.arange(m[group].max())
        real = column < m[group][:, None]  # [B, M]
        at = rows[first[group][:, None] + np.where(real, column, 0)]
        request = Request(
            user=torch.from_numpy(log.user[at[:, 0]]),
            timestamp=torch.from_numpy(log.timestamp[at]),
            candidates=torch.from_numpy(log.item[at]),
            history=pad_histories(histories, start[group], end[group], len(log)),
            visible=torch.from_numpy(histories.end[at] - start[group][:, None]),
        )
        row = torch.from_numpy(np.where(real, at, -1))
        yield Impressions(request, torch.from_numpy(log.label[at]), row)
