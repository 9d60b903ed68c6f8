"""Ranking logs: one type for all of them, and a loader for each source.

The loaders are modules: `from recsys_edu.data import movielens, kuairand, tables`.
They are not imported here, because they bring pandas with them.
"""

from recsys_edu.data.coding import UNKNOWN, Coding, EventCoding
from recsys_edu.data.features import Features
from recsys_edu.data.interactions import (
    Histories,
    InteractionLog,
    earlier_events,
    sittings,
)
from recsys_edu.data.splits import (
    Split,
    split_at_random,
    split_by_time,
)

__all__ = [
    "UNKNOWN",
    "Coding",
    "EventCoding",
    "Features",
    "Histories",
    "InteractionLog",
    "Split",
    "earlier_events",
    "sittings",
    "split_at_random",
    "split_by_time",
]
