"""The door: requests in the source's own ids become indices, checked here and once.

What comes from outside is checked against what a ranker knows: its ids, its actions,
and the time span of its training log. Behind the door nothing is checked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from recsys_edu.batch import History, Request, at_the_end
from recsys_edu.data.coding import UNKNOWN
from recsys_edu.data.interactions import LAST_SECOND
from recsys_edu.embeddings import Embeddings, FeatureEmbedding

Unknown = Literal["raise", "unknown", "mask"]
"""What to do with ids that the ranker does not know.

=========  ===========================================================================
"raise"    a KeyError that names them and their rows
"unknown"  take them for UNKNOWN: row 0 of every table
"mask"     unknown candidates are not shown and score -inf, events of unknown items are
           left out of the history, an unknown user or action is taken for UNKNOWN
=========  ===========================================================================
"""

TEN_YEARS = 10 * 365 * 86_400


def request_of(
    embeddings: Embeddings,
    user: Any,
    candidates: Any,
    *,
    now: Any,
    items: Any = (),
    actions: Any = (),
    times: Any = (),
    unknown: Unknown = "raise",
) -> Request:
    """See :meth:`recsys_edu.dlrm.DLRM.request`."""
    if unknown not in ("raise", "unknown", "mask"):
        raise ValueError(f"unknown is {unknown!r}: 'raise', 'unknown' or 'mask'")
    columns = {"items": items, "actions": actions, "times": times}
    if np.ndim(user) == 0:  # one request is a batch of one
        user, candidates, now = [user], [candidates], [now]
        columns = {name: [column] for name, column in columns.items()}
    b = len(user)
    columns = {
        name: column if len(column) else [()] * b for name, column in columns.items()
    }
    for name, rows in (("candidates", candidates), ("now", now), *columns.items()):
        if len(rows) != b:
            raise ValueError(f"{name} has {len(rows)} rows for {b} users")
    candidates = _rows("candidates", candidates)
    columns = {name: _rows(name, rows) for name, rows in columns.items()}
    n = [len(row) for row in columns["items"]]
    for name, rows in columns.items():
        for row, values in enumerate(rows):
            if len(values) != n[row]:
                raise ValueError(
                    f"row {row}: {len(values)} {name} for a history of {n[row]} items"
                )
    users = _index(embeddings.users, [np.asarray(user)], "users", unknown)[0]
    shown = _index(embeddings.items, candidates, "candidates", unknown)
    item = _index(embeddings.items, columns["items"], "items", unknown)
    action = _actions(embeddings, columns["actions"], unknown)
    time = [_seconds("times", row, r) for r, row in enumerate(columns["times"])]
    candidate, is_shown = _padded(shown)
    event, is_event = _padded(item)
    if unknown == "mask":
        is_shown = is_shown & (candidate != UNKNOWN)
        is_event = is_event & (event != UNKNOWN)
        _refuse_strangers(shown, is_shown)
    history = History(event, _padded(action)[0], _padded(time)[0], is_event)
    request = Request(
        user=torch.from_numpy(users),
        timestamp=torch.from_numpy(_seconds("now", np.asarray(now), None))[:, None],
        candidates=candidate,
        history=history,
        shown=None if is_shown.all() else is_shown,
    )
    return checked(embeddings, request)


def checked(embeddings: Embeddings, request: Request) -> Request:
    """A request made of indices, held to what a request is; padding put at the end.

    Raises:
        ValueError: an index of nobody, events out of order, at or after the request, or
            times that cannot be seconds as in the training log. Names the row.
    """
    history = request.history
    sizes = len(embeddings.users.values), len(embeddings.items.values)
    shown, mask = request.shown, history.mask
    _require_index("user", request.user, sizes[0])
    _require_index("candidates", request.candidates, sizes[1], shown)
    _require_index("history.item", history.item, sizes[1], mask)
    if embeddings.coding is not None:
        size = len(embeddings.coding.actions)
        _require_index("history.action", history.action, size, mask)
        _require_times(embeddings, request)
    history = at_the_end(history)
    step = history.timestamp.diff(dim=1)
    backwards = (step < 0) & history.mask[:, 1:]
    if backwards.any():
        row, event = _first(backwards)
        at = history.timestamp[row].tolist()
        newest_first = not (step[row] > 0)[history.mask[row, 1:]].any()
        mend = (
            "they come newest first: reverse items, actions and times"
            if newest_first
            else "sort the history by time"
        )
        raise ValueError(
            f"row {row}: event {event + 1} happened at {at[event + 1]}, before event "
            f"{event} at {at[event]}; events come oldest first. Here {mend}"
        )
    late = (history.timestamp >= request.timestamp[:, :1]) & history.mask
    if late.any() and request.visible is None:
        row, event = _first(late)
        at = int(history.timestamp[row, event])
        raise ValueError(
            f"row {row}: event {event} happened at {at}, "
            f"at or after the request at {int(request.timestamp[row, 0])}: a ranker "
            "that reads it reads the future. Leave out what is not earlier than now"
        )
    return Request(
        request.user,
        request.timestamp,
        request.candidates,
        history,
        request.visible,
        request.shown,
    )


def _rows(name: str, rows: Sequence[Any]) -> list[np.ndarray]:
    arrays = [np.asarray(row) for row in rows]
    for row, array in enumerate(arrays):
        if array.ndim != 1:
            raise ValueError(
                f"{name}, row {row}: {array.tolist()!r} is not a list; B users take B "
                "lists, one user takes one list"
            )
    return arrays


def _index(
    side: FeatureEmbedding, rows: list[np.ndarray], name: str, unknown: Unknown
) -> list[np.ndarray]:
    """Rows of ids -> rows of indices, by one look-up for all of them."""
    lengths = [len(row) for row in rows]
    filled = [row for row in rows if len(row)]
    ids = np.concatenate(filled) if filled else np.zeros(0, np.int64)
    try:
        index = side.values.index(ids)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if unknown == "raise" and (index == UNKNOWN).any():
        row = np.repeat(np.arange(len(rows)), lengths)[index == UNKNOWN]
        strangers = ids[index == UNKNOWN].tolist()
        raise KeyError(
            f"{name}, row {row[0]}: the ranker does not know {strangers[:5]} "
            f"({len(strangers)} in all). Say unknown='unknown' to rank by what is said "
            "of nobody in particular, unknown='mask' to leave them out, or add them to "
            "its values"
        )
    return np.split(index, np.cumsum(lengths)[:-1])


def _actions(
    embeddings: Embeddings, rows: list[np.ndarray], unknown: Unknown
) -> list[np.ndarray]:
    if embeddings.coding is None:
        return [np.full(len(row), UNKNOWN) for row in rows]
    coded = [embeddings.coding.index(row) for row in rows]
    for row, codes in enumerate(coded):
        if unknown == "raise" and (codes == UNKNOWN).any():
            stranger = rows[row][codes == UNKNOWN][0].item()
            raise KeyError(
                f"actions, row {row}: the ranker does not know {stranger!r}; it knows "
                f"{list(embeddings.coding.actions)}"
            )
    return coded


def _seconds(name: str, values: np.ndarray, row: int | None) -> np.ndarray:
    if not len(values):
        return np.zeros(0, np.int64)
    if values.dtype.kind not in "iu":
        where = name if row is None else f"{name}, row {row}"
        raise ValueError(
            f"{where}: {values[0]!r} is {values.dtype}; a time is a whole number of "
            "seconds since 1970 (UTC), such as int(when.timestamp())"
        )
    return values.astype(np.int64)


def _padded(rows: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Rows of k numbers -> [B, K] with zeros behind, and where the numbers are."""
    length = np.array([len(row) for row in rows])
    mask = np.arange(length.max(initial=0)) < length[:, None]
    table = np.zeros(mask.shape, np.int64)
    table[mask] = np.concatenate(rows) if rows else 0
    return torch.from_numpy(table), torch.from_numpy(mask)


def _refuse_strangers(rows: list[np.ndarray], shown: Tensor) -> None:
    m, left = np.array([len(row) for row in rows]), shown.sum(1).numpy()
    if (bad := m - left > left).any():
        row = int(bad.argmax())
        raise ValueError(
            f"row {row}: {m[row] - left[row]} of {m[row]} candidates are unknown, more "
            "than are shown: are these the ids that the ranker was trained on?"
        )


def _require_index(
    name: str, index: Tensor, size: int, mask: Tensor | None = None
) -> None:
    bad = (index < UNKNOWN) | (index >= size)
    if mask is not None:
        bad &= mask
    if bad.any():
        row = _first(bad)[0]
        value = int(index[bad][0])
        raise ValueError(
            f"row {row}: {name} {value} is nobody's index: they are 0..{size - 1}, and "
            f"{UNKNOWN} for the unknown"
        )


def _require_times(embeddings: Embeddings, request: Request) -> None:
    """Refuses what is no time in seconds, beside the log that the ranker knows."""
    first = embeddings.coding.first - TEN_YEARS
    history = request.history
    every = torch.ones_like(request.timestamp, dtype=torch.bool)
    for name, time, real in (
        ("now", request.timestamp, every),
        ("times", history.timestamp, history.mask),
    ):
        large, small = (time >= LAST_SECOND) & real, (time < first) & real
        if large.any():
            row = _first(large)[0]
            raise ValueError(
                f"{name}, row {row}: {int(time[large][0])} is after the year 2100 in "
                "seconds since 1970: milliseconds are divided by 1000, nanoseconds by "
                "10**9"
            )
        if small.any():
            row = _first(small)[0]
            raise ValueError(
                f"{name}, row {row}: {int(time[small][0])} lies more than ten years "
                f"before the ranker's log, which begins at {embeddings.coding.first}: "
                "is it in seconds since 1970?"
            )


def _first(bad: Tensor) -> list[int]:
    return bad.nonzero()[0].tolist()
