"""What a link index costs: to build, to open, and to use without.

Three parts:

- ``building``: a catalogue of a million items into an index of each type of table, at
  r = 32 and d = 64: items a minute, bytes an item, and how far a weight is off;
- ``opening``: a saved index of ten million items, from nothing to the first 512 rows;
- ``memory``: what LIME-XOR adds to the model on the request clock, over N, which should
  grow no faster.

Latency is what ``python -m recsys_edu.experiments latency`` records. Takes a minute.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from recsys_edu.bench import compare
from recsys_edu.cost import nbytes
from recsys_edu.data.synthetic import planted_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.lime import LimeXOR
from recsys_edu.experiments import latency
from recsys_edu.experiments.latency import D, R
from recsys_edu.experiments.measure import added_by, digits, in_parts, timed
from recsys_edu.scoring.link_index import LinkIndex

KEY = ("part", "form")


@dataclass(frozen=True)
class Plan:
    """Which sizes are measured, and how often."""

    items: int = 10**6  # that an index is built of
    opened: int = 10**7  # in the index that is opened
    candidates: int = 512  # that are read from it
    lengths: Sequence[int] = (1024, 4096, 16_384)  # N
    rounds: int = 5


TINY = Plan(40, 50, 6, (5, 7), rounds=1)
"""A dry run: every line, at sizes that say nothing, in seconds."""


def building(plan: Plan) -> Iterator[dict]:
    """Into an index: ``items_per_minute``, ``bytes_per_item``, ``error`` at most."""
    log = planted_world(seed=0, n_impressions=1000, n_items=plan.items).log
    torch.manual_seed(0)
    embeddings = Embeddings(log.users, log.items, log.events, D)
    model = DLRM(embeddings, LimeXOR(D, r=R)).eval()
    types = (torch.float32, torch.float16, torch.int8)
    timings = compare(
        {t: lambda t=t: LinkIndex.build(model, dtype=t) for t in types},
        rounds=plan.rounds,
    )
    item = torch.arange(plan.items)
    exact = LinkIndex.build(model)[item]
    for dtype, timing in timings.items():
        index = LinkIndex.build(model, dtype=dtype)
        yield {
            "form": str(dtype).removeprefix("torch."),
            **timed(timing, timings[torch.float32]),
            "items_per_minute": digits(60 * plan.items / timing.median),
            "bytes_per_item": (nbytes(index.weights) + nbytes(index.scale))
            // plan.items,
            "error": digits((index[item].float() - exact).abs().max()),
        }


def opening(plan: Plan) -> Iterator[dict]:
    """From nothing to an index, and to its first rows."""
    weights = torch.rand(plan.opened, R, dtype=torch.float16)
    candidates = torch.randint(plan.opened, (1, plan.candidates))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "links.safetensors"
        LinkIndex(weights, None, "of a benchmark").save(path)
        work = {
            "open": lambda: LinkIndex.open(path),
            f"open, read {plan.candidates} rows": lambda: LinkIndex.open(path)[
                candidates
            ],
        }
        timings = compare(work, rounds=plan.rounds)
        size = path.stat().st_size
    for form, timing in timings.items():
        row = {"form": form, "megabytes": digits(size / 1e6)}
        yield row | timed(timing, timings["open"])


def memory(plan: Plan) -> Iterator[dict]:
    """``megabytes`` at the peak of LIME-XOR's request clock, above the model's own."""
    for n in plan.lengths:
        yield {"form": f"N = {n:,}", "N": n} | added_by(_encode, n)


def _encode(n: int) -> Callable[[], object]:
    model, at = latency.ranker("LIME-XOR"), latency.request(n, 1)
    model.encode_request(latency.request(8, 1))  # libraries load on first use
    return lambda: model.encode_request(at)


PARTS = {"building": building, "opening": opening, "memory": memory}


def runs(
    names: Sequence[str] = (),
    done: frozenset[tuple] = frozenset(),
    *,
    plan: Plan | None = None,
) -> Iterator[dict]:
    """One row for each form of each part.

    Raises:
        KeyError: a name that is not among the parts.
    """
    return in_parts(PARTS, names, done, plan or Plan())
