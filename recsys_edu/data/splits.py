"""Which rows of a log train a ranker, which choose it and which judge it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys_edu.data.interactions import LAST_SECOND, InteractionLog


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
        ValueError: fractions that do not add to 1, a part that would be empty, or a log
            of one second.
    """
    if log.timestamp[0] == log.timestamp[-1]:
        raise ValueError(
            f"all {len(log)} rows of {log.name} are of one second, so none is earlier "
            "than another: use split_at_random"
        )
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
