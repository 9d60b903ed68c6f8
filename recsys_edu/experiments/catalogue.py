"""What a link index costs: ``python -m recsys_edu.experiments catalogue`` prints two tables and JSON.

1. building: items a minute for a catalogue of a million, at r = 32 and d = 64, and the
   bytes and the error of a weight in each type of table;
2. opening: a saved index of ten million items, from nothing to the first 512 rows.

Then the peak memory of LIME-XOR's request clock over N, which should grow no faster.
Latency is recorded by ``python -m recsys_edu.experiments latency``.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from pathlib import Path

import torch

from recsys_edu.bench import compare, environment_card
from recsys_edu.cost import nbytes
from recsys_edu.data.synthetic import planted_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.lime import LimeXOR
from recsys_edu.experiments import latency
from recsys_edu.experiments.scoring import can_measure_memory, megabytes_added
from recsys_edu.scoring.link_index import LinkIndex

D, R = latency.D, latency.R
CATALOGUE, LARGE = 10**6, 10**7
LENGTHS = (1024, 4096, 16_384)


def building() -> dict[str, object]:
    """Items a minute into an index, its bytes an item, and how far a weight is off."""
    log = planted_world(seed=0, n_impressions=1000, n_items=CATALOGUE).log
    torch.manual_seed(0)
    embeddings = Embeddings(log.users, log.items, log.events, D)
    model = DLRM(embeddings, LimeXOR(D, r=R)).eval()
    types = (torch.float32, torch.float16, torch.int8)
    timings = compare(
        {t: lambda t=t: LinkIndex.build(model, dtype=t) for t in types}, rounds=3
    )
    item = torch.arange(CATALOGUE)
    exact = LinkIndex.build(model)[item]
    print("\n| table | items a minute | bytes an item | largest error of a weight |")
    print("| --- | --- | --- | --- |")
    results = {}
    for dtype, timing in timings.items():
        index = LinkIndex.build(model, dtype=dtype)
        rate = 60 * CATALOGUE / timing.median
        size = (nbytes(index.weights) + nbytes(index.scale)) // CATALOGUE
        error = (index[item].float() - exact).abs().max()
        name = str(dtype).removeprefix("torch.")
        print(f"| {name} | {rate / 1e6:.1f} M | {size} | {error:.1e} |")
        results[f"{name}_items_per_minute"] = round(rate)
        results[f"{name}_bytes_per_item"] = size
    return results


def opening() -> dict[str, object]:
    """Milliseconds to open an index of ten million items, and to read 512 of them."""
    weights = torch.rand(LARGE, R, dtype=torch.float16)
    candidates = torch.randint(LARGE, (1, 512))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "links.safetensors"
        LinkIndex(weights, None, "of a benchmark").save(path)
        work = {
            "open": lambda: LinkIndex.open(path),
            "open, read 512 rows": lambda: LinkIndex.open(path)[candidates],
        }
        timings = compare(work, rounds=5)
        size = path.stat().st_size
    print(f"\n| {LARGE / 1e6:.0f} M items, {size / 1e6:.0f} MB | time |\n| --- | --- |")
    for name, timing in timings.items():
        print(f"| {name} | {timing} |")
    return {"open_ms": round(1e3 * timings["open"].high, 2)}


def request_memory() -> dict[str, object]:
    """Megabytes that LIME-XOR adds to the model on the request clock, by N."""
    if not can_measure_memory():
        print("\npeak memory: skipped, only Linux can measure it from inside")
        return {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        added = [pool.apply(_added, (n,)) for n in LENGTHS]
    print("\n| N | peak memory of LIME-XOR's request clock |\n| --- | --- |")
    for n, megabytes in zip(LENGTHS, added, strict=True):
        print(f"| {n:,} | {megabytes:.1f} MB |")
    return {"request_memory_mb": [round(megabytes, 1) for megabytes in added]}


def _added(n: int) -> float:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    model, at = latency.ranker("LIME-XOR"), latency.request(n, 1)
    model.encode_request(latency.request(8, 1))  # libraries load on first use
    return megabytes_added(lambda: model.encode_request(at))


def main() -> None:
    """Runs the three and ends with one line of JSON."""
    torch.set_grad_enabled(False)
    print(environment_card())
    print(json.dumps(building() | opening() | request_memory()))


if __name__ == "__main__":
    main()
