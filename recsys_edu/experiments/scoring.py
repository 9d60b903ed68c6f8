"""What scoring costs on both clocks, and in memory.

Three parts:

- ``amortization``: naive over amortized, the whole ranker, at N = 256, M = 512;
- ``clocks``: the request and the candidate clock at N = 1024, M = 4096, as a fraction
  of the matrix product's speed on the same machine, and what takes the time. FLOPs are
  those of the plain form: what a kernel leaves out of a causal history counts as done;
- ``memory``: what 32,768 candidates at N = 1024 add to the model's own, in
  micro-batches.

Times are ratios from one interleaved run. d = 64, two layers, float32, append with
cross-attention and a causal history. Takes half a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import profile

from recsys_edu.bench import compare, ratio
from recsys_edu.cost import count, nbytes
from recsys_edu.experiments import latency
from recsys_edu.experiments.latency import request
from recsys_edu.experiments.measure import added_by, digits, in_parts, timed
from recsys_edu.scoring.strategies import amortized, naive

KEY = ("part", "form")
MODEL, MICRO_BATCH = "append-cross, causal", 256


@dataclass(frozen=True)
class Plan:
    """Which sizes are measured, each an N and an M, and how often."""

    amortization: tuple[int, int] = (256, 512)
    clocks: tuple[int, int] = (1024, 4096)
    memory: tuple[int, int] = (1024, 32_768)
    product: int = 1024  # side of the product that a core's speed is measured by
    rounds: int = 7


TINY = Plan((4, 6), (6, 8), (6, 9), product=8, rounds=1)
"""A dry run: every line, at sizes that say nothing, in seconds."""


def amortization(plan: Plan) -> Iterator[dict]:
    """Naive over amortized."""
    n, m = plan.amortization
    model, at = latency.ranker(MODEL), request(n, m)
    timings = compare(
        {
            "naive": lambda: naive(model, at),
            "amortized": lambda: amortized(model, at, micro_batch=MICRO_BATCH),
        },
        rounds=plan.rounds,
    )
    for form, timing in timings.items():
        yield {"form": form, "N": n, "M": m, **timed(timing, timings["amortized"])}


def clocks(plan: Plan) -> Iterator[dict]:
    """Both clocks against this machine's matrix product.

    ``of_product`` is FLOPs per second over the product's; ``where`` the operations that
    take most of the time, ``code_bytes`` what is kept of the request.
    """
    n, m = plan.clocks
    model, at = latency.ranker(MODEL), request(n, m)
    a = torch.rand(plan.product, plan.product)
    items = [model.encode_items(c) for c in at.candidates.split(MICRO_BATCH, dim=1)]
    side = model.encode_request(at)
    work = {
        "matrix product": lambda: a @ a,
        "request clock": lambda: model.encode_request(at),
        "candidate clock": lambda: [model.fuse(item, side) for item in items],
    }
    flops = {name: count(run).flops for name, run in work.items()}
    timings = compare(work, rounds=plan.rounds)
    product = timings["matrix product"]
    for form, timing in timings.items():
        speed = flops[form] / flops["matrix product"] / ratio(timing, product).median
        yield {
            "form": form,
            "N": n,
            "M": m,
            **timed(timing, product),
            "flops": flops[form],
            "of_product": digits(speed),
            "where": shares(work[form]),
            "code_bytes": nbytes(side.code),
        }


def shares(run: Callable[[], object]) -> str:
    """The six operations that take most of a call's time, with their shares of it."""
    with profile() as profiled:
        run()
    rows = profiled.key_averages()
    total = sum(row.self_cpu_time_total for row in rows)
    top = sorted(rows, key=lambda row: -row.self_cpu_time_total)[:6]
    return ", ".join(f"{row.key} {row.self_cpu_time_total / total:.0%}" for row in top)


def memory(plan: Plan) -> Iterator[dict]:
    """Megabytes that many candidates add to the model's own."""
    n, m = plan.memory
    row = {"form": "amortized", "N": n, "M": m}
    yield row | added_by(_score, n, m)


def _score(n: int, m: int) -> Callable[[], object]:
    model, at = latency.ranker(MODEL), request(n, m)
    amortized(model, request(8, 8), micro_batch=8)  # libraries load on first use
    return lambda: amortized(model, at, micro_batch=MICRO_BATCH)


PARTS = {"amortization": amortization, "clocks": clocks, "memory": memory}


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
