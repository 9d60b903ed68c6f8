"""What a longer history buys on the next item, over three seeds.

Trains models as :mod:`recsys_edu.experiments.quality` does, at the learning rate that
was chosen there, on the log of the longest histories, each with N events of a history
in training and after it. Takes an hour and a half on two cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from recsys_edu.experiments import quality
from recsys_edu.experiments.quality import KEY as KEY
from recsys_edu.experiments.quality import NONE, Model, vary

EVENTS = (5, 20, 100, 300, 1000)
BASES = ("mean pooling", "append-cross, causal", "HSTU", "LIME-MHA")

MODELS: dict[str, Model] = {
    f"{name}, N = {n}": replace(quality.MODELS[name], events=n)
    for n in EVENTS
    for name in BASES
}


def base(name: str) -> str:
    """The model that is given N events: what stands before the last comma."""
    return name.rpartition(",")[0]


def runs(
    names: Sequence[str] = (), done: Mapping[tuple, dict] = NONE
) -> Iterator[dict]:
    """Rows of :data:`MODELS`, as :func:`~recsys_edu.experiments.quality.vary` says."""
    return vary(MODELS, base, "latest-small", "next item", names, done)
