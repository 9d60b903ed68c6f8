"""What a request costs, against M, N and the width in which items meet links.

Rankers with random weights on one CPU thread, as in LIME's first figure on its authors'
machines: d = 64, two layers or blocks, r = 32, float32. HSTU and append-cross are
scored by M-FALCON, LIME by a link index. At each size all of them take turns, so that
their ratios share a machine. Takes ten minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import torch

from recsys_edu.batch import Request, random_request
from recsys_edu.bench import compare
from recsys_edu.data import InteractionLog
from recsys_edu.data.synthetic import planted_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder
from recsys_edu.encoders.base import HistoryEncoder
from recsys_edu.encoders.hstu import HSTU
from recsys_edu.encoders.lime import Lime, LimeMHA, LimeXOR
from recsys_edu.experiments.measure import timed
from recsys_edu.scoring.link_index import LinkIndex
from recsys_edu.scoring.strategies import amortized, links

KEY = ("sweep", "size", "part", "model")
D, LAYERS, R = 64, 2, 32
N, M = 1024, 512  # where the other one varies
SIZES = {
    "M": [2**k for k in range(6, 16)],
    "N": [2**k for k in range(6, 15)],
    "qk": [2**k for k in range(4, 11)],
}
ENCODERS: dict[str, Callable[..., HistoryEncoder]] = {
    "append-cross, causal": partial(AppendEncoder, D, layers=LAYERS),
    "HSTU": partial(HSTU, D, layers=LAYERS),
    "LIME-MHA": partial(LimeMHA, D, r=R),
    "LIME-XOR": partial(LimeXOR, D, r=R, layers=LAYERS),
}
# Candidates at a time: the fastest power of two for each at N = 1024, M = 8192.
MICRO_BATCH = {
    "append-cross, causal": 2048,
    "HSTU": 1024,
    "LIME-MHA": 4096,
    "LIME-XOR": 4096,
}
Run = Callable[[], object]


@cache
def world(items: int = 5_000) -> InteractionLog:
    """A planted world's log with so many items."""
    return planted_world(seed=0, n_impressions=20_000, n_items=items).log


@cache
def ranker(name: str, **options: int) -> DLRM:
    """A ranker of that world around ``ENCODERS[name]``, with random weights."""
    log = world()
    torch.manual_seed(0)
    embeddings = Embeddings(log.users, log.items, log.events, D)
    return DLRM(embeddings, ENCODERS[name](**options)).eval()


@cache
def index(name: str, **options: int) -> LinkIndex:
    """The link index of a LIME ranker."""
    return LinkIndex.build(ranker(name, **options))


def request(n: int, m: int) -> Request:
    """A random request of that world."""
    return random_request(world(), n, m, seed=0)


def whole(name: str, at: Request, **options: int) -> Run:
    """The whole ranker, from ids to scores."""
    model, size = ranker(name, **options), MICRO_BATCH[name]
    if isinstance(model.encoder, Lime):
        weights = index(name, **options)
        return lambda: links(model, at, weights, micro_batch=size)
    return lambda: amortized(model, at, micro_batch=size)


def encoder_alone(name: str, at: Request) -> Run:
    """The encoder's request and candidate clocks, from event vectors to [1, M, d].

    A candidate of LIME begins with the look-up of its weights, one of the others with
    an item vector that is there.
    """
    model = ranker(name)
    encoder, events = model.encoder, model.events(at)
    context = model.embeddings.users(at.user)
    if isinstance(encoder, Lime):
        code_of, codes = index(name).__getitem__, at.candidates
    else:
        code_of, codes = encoder.encode_items, model.embeddings.items(at.candidates)
        codes = codes.sum(-2)
    parts = codes.split(MICRO_BATCH[name], dim=1)

    def run() -> None:
        history = encoder.encode_history(events, context)
        for part in parts:
            encoder.fuse(code_of(part), history)

    return run


def runs(
    names: Sequence[str] = (), done: frozenset[tuple] = frozenset()
) -> Iterator[dict]:
    """A row for each of M, N and qk, each of its sizes, model, and part of the ranker.

    ``seconds``, with quartiles ``low`` and ``high``, are of CPU time; ``times``, with
    quartiles of its own, is how many times LIME-XOR's they are, round by round, and for
    qk how many times those with the index.

    Raises:
        ValueError: models are named: they are timed in turns, so all or none.
    """
    if names:
        raise ValueError("latency is recorded for all models at once: name none")
    with torch.no_grad():
        for sweep in ("M", "N"):
            for size in SIZES[sweep]:
                at = request(N, size) if sweep == "M" else request(size, M)
                for part, run in (("ranker", whole), ("encoder", encoder_alone)):
                    work = {name: run(name, at) for name in ENCODERS}
                    yield from _rows(work, "LIME-XOR", done, (sweep, size, part))
        at = request(N, 4096)
        for qk in SIZES["qk"]:
            model, size = ranker("LIME-XOR", qk=qk), MICRO_BATCH["LIME-XOR"]
            work = {
                "index": whole("LIME-XOR", at, qk=qk),
                "no index": partial(amortized, model, at, micro_batch=size),
            }
            yield from _rows(work, "index", done, ("qk", qk, "ranker"))


def _rows(
    work: dict[str, Run], base: str, done: frozenset[tuple], where: tuple
) -> Iterator[dict]:
    if done >= {(*where, name) for name in work}:
        return
    timings = compare(work, rounds=7, timer=time.process_time)
    for name, timing in timings.items():
        row = dict(zip(KEY, (*where, name), strict=True))
        yield row | timed(timing, timings[base])
