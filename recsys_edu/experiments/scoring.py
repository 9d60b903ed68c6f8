"""What scoring costs: ``python -m recsys_edu.experiments scoring`` prints three tables and JSON.

1. naive over amortized, the whole ranker, at N = 256, M = 512;
2. the request and the candidate clock at N = 1024, M = 4096, as a fraction of the
   matrix product's speed on the same machine, and the operations that take the rest;
3. peak memory of 32,768 candidates at N = 1024, in micro-batches.

Times are ratios from one interleaved run. d = 64, two layers, float32, append with
cross-attention and a causal history.
"""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import profile

from recsys_edu.bench import compare, environment_card, ratio
from recsys_edu.cost import count, nbytes
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder
from recsys_edu.experiments.latency import request, world
from recsys_edu.scoring.strategies import amortized, naive

D, LAYERS, MICRO_BATCH = 64, 2, 256
SIDE = 1024  # of the square product that a core's speed is measured by


def ranker() -> DLRM:
    """A ranker with random weights over a planted world."""
    log = world()
    torch.manual_seed(0)
    embeddings = Embeddings(log.users, log.items, log.events, D)
    return DLRM(embeddings, AppendEncoder(D, layers=LAYERS)).eval()


def amortization(model: DLRM) -> dict[str, object]:
    """Naive over amortized at N = 256, M = 512."""
    at = request(256, 512)
    timings = compare(
        {
            "naive": lambda: naive(model, at),
            "amortized": lambda: amortized(model, at, micro_batch=MICRO_BATCH),
        },
        rounds=5,
    )
    speed_up = ratio(timings["naive"], timings["amortized"])
    print("\n| N = 256, M = 512 | time |\n| --- | --- |")
    for name, timing in timings.items():
        print(f"| {name} | {timing} |")
    print(f"| naive / amortized | {speed_up} |")
    return {"naive_over_amortized": round(speed_up.median, 1)}


def fraction_of_peak(model: DLRM) -> dict[str, object]:
    """Both clocks at N = 1024, M = 4096, against this machine's matrix product."""
    at = request(1024, 4096)
    a = torch.rand(SIDE, SIDE)
    items = [model.encode_items(c) for c in at.candidates.split(MICRO_BATCH, dim=1)]
    side = model.encode_request(at)
    work = {
        "matrix product": lambda: a @ a,
        "request clock": lambda: model.encode_request(at),
        "candidate clock": lambda: [model.fuse(item, side) for item in items],
    }
    flops = {name: count(run).flops for name, run in work.items()}
    timings = compare(work, rounds=9)
    print("\n| N = 1024, M = 4096 | FLOPs | time | of the product's speed |")
    print("| --- | --- | --- | --- |")
    fractions = {}
    for name, timing in timings.items():
        slower = ratio(timing, timings["matrix product"])  # per call, round by round
        fraction = flops[name] / flops["matrix product"] / slower.median
        fractions[name.replace(" ", "_")] = round(fraction, 3)
        print(f"| {name} | {flops[name] / 1e9:.2f} G | {timing} | {fraction:.0%} |")
    for name in ("request clock", "candidate clock"):
        with profile() as profiled:
            work[name]()
        rows = profiled.key_averages()
        total = sum(row.self_cpu_time_total for row in rows)
        top = sorted(rows, key=lambda row: -row.self_cpu_time_total)[:6]
        shares = [f"{row.key} {row.self_cpu_time_total / total:.0%}" for row in top]
        print(f"\nwhere the {name} goes: {', '.join(shares)}")
    print(f"\nthe request's code: {nbytes(side.code):,} bytes")
    return fractions


def peak_memory() -> dict[str, object]:
    """Megabytes that 32,768 candidates at N = 1024 add to the model's own."""
    if not can_measure_memory():
        print("\npeak memory: skipped, only Linux can measure it from inside")
        return {}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        added = pool.apply(_added_megabytes)
    print(f"\npeak memory of N = 1024, M = 32,768 above the model: {added:.0f} MB")
    return {"peak_memory_mb": round(added)}


def _added_megabytes() -> float:
    torch.set_grad_enabled(False)
    model, at = ranker(), request(1024, 32_768)
    amortized(model, request(8, 8), micro_batch=8)  # libraries load on first use
    return megabytes_added(lambda: amortized(model, at, micro_batch=MICRO_BATCH))


def can_measure_memory() -> bool:
    """Whether :func:`megabytes_added` works here."""
    return Path("/proc/self/clear_refs").exists()


def megabytes_added(run: Callable[[], object]) -> float:
    """By how much ``run`` raises this process's memory above what it holds now.

    Linux can forget a process's peak so far, which is what the difference is taken to.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held now
    before = _peak_megabytes()
    run()
    return _peak_megabytes() - before


def _peak_megabytes() -> float:
    [line] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) / 1e3


def main() -> None:
    """Runs the three and ends with one line of JSON."""
    torch.set_grad_enabled(False)
    print(environment_card())
    model = ranker()
    results = amortization(model) | fraction_of_peak(model) | peak_memory()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
