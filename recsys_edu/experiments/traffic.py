"""Threads that share a cache and an index, while entries go and weights are replaced.

Eight threads send 100,000 requests to a ranker whose cache holds half of its users. The
weights are replaced five times meanwhile, and for LIME another thread takes items out
of the index and puts them in again. A request is of one to three users, each with all
events so far or one less. Every score is held against a full pass by the deployment
that answered: what must come out is zeros. Takes five minutes.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from recsys_edu.batch import Request, random_request
from recsys_edu.cost import nbytes
from recsys_edu.data.synthetic import planted_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder
from recsys_edu.encoders.lime import LimeMHA
from recsys_edu.scoring.link_index import LinkIndex
from recsys_edu.scoring.strategies import amortized, links
from recsys_edu.scoring.user_cache import UserCache

D, EVENTS, CANDIDATES, USERS, ITEMS = 8, 12, 4, 40, 30
ENCODERS = {
    "append-cross, causal": lambda: AppendEncoder(D, layers=2),
    "LIME-MHA": lambda: LimeMHA(D, r=3),
}
REQUESTS, THREADS, SWAPS = 100_000, 8, 5
KEY = ("model",)


@dataclass(frozen=True)
class Deployment:
    """All that must be of the same weights: replaced whole, by one assignment."""

    cache: UserCache
    index: LinkIndex | None
    exact: Tensor  # [USERS, 1 + EVENTS, M] float64, what a user's first n events score
    budget: float  # how far float32 may be off

    def score(self, request: Request) -> Tensor:
        """Scores [B, M], from kept histories and, for LIME, looked-up items."""
        model, encode = self.cache.model, self.cache.encode_request
        if self.index is None:
            return amortized(model, request, micro_batch=CANDIDATES, encode=encode)
        return links(model, request, self.index, micro_batch=CANDIDATES, encode=encode)


class Server:
    """Scores requests by whatever is deployed when they come in."""

    def __init__(self, name: str) -> None:
        log = planted_world(seed=0, n_impressions=500, n_users=USERS, n_items=ITEMS).log
        torch.manual_seed(0)
        embeddings = Embeddings(log.users, log.items, log.events, D)
        self.model = DLRM(embeddings, ENCODERS[name]()).eval()
        wanted = [random_request(log, EVENTS, CANDIDATES, seed=u) for u in range(USERS)]
        self.requests = [
            replace(
                request,
                user=torch.tensor([user]),
                candidates=request.candidates % (ITEMS - 5),  # the rest comes and goes
            )
            for user, request in enumerate(wanted)
        ]
        self.deployments: list[Deployment] = []
        self.deploy()
        self.live.cache.encode_request(self.requests[0])
        self.live.cache.max_bytes = self.live.cache.bytes * USERS // 2
        self.live.cache.clear()

    @property
    def live(self) -> Deployment:
        """What serves now."""
        return self.deployments[-1]

    @torch.no_grad()
    def deploy(self) -> None:
        """Other weights, an empty cache and another index, made aside and put live."""
        model = copy.deepcopy(self.model)
        torch.manual_seed(len(self.deployments))
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.3)
        every = Request.stack(
            [first(r, n) for r in self.requests for n in range(1 + EVENTS)]
        )
        exact = copy.deepcopy(model).double()(every)
        rounding = 64 * 2**-24 * exact.abs().max().clamp(min=1)
        budget = 2 * (model(every) - exact).abs().max() + rounding
        max_bytes = self.live.cache.max_bytes if self.deployments else 10**9
        has_links = isinstance(model.encoder, LimeMHA)
        deployment = Deployment(
            UserCache(model, max_bytes=max_bytes),
            LinkIndex.build(model) if has_links else None,
            exact.view(USERS, 1 + EVENTS, CANDIDATES),
            float(budget),
        )
        self.deployments.append(deployment)


def first(request: Request, n: int) -> Request:
    """The request with the first n events of its history."""
    return replace(request, history=request.history.map(lambda t: t[:, :n]))


class Traffic:
    """Threads that ask, one that swaps, one that changes the index; and what they saw.

    Args:
        requests: in all.
        threads: that ask.
        swaps: of weights, evenly spaced.
    """

    def __init__(self, server: Server, requests: int, threads: int, swaps: int) -> None:
        self.server, self.requests = server, requests
        self.threads, self.swaps = threads, swaps
        self.done = self.wrong = 0
        self.errors: Counter[str] = Counter()
        self._lock = threading.Lock()

    def run(self) -> float:
        """Sends all requests; the seconds it took."""
        asking = [
            threading.Thread(target=self._guarded, args=(self._ask, seed))
            for seed in range(self.threads)
        ]
        others = [
            threading.Thread(target=self._guarded, args=(work,))
            for work in (self._swap, self._come_and_go)
        ]
        start, interval = time.perf_counter(), sys.getswitchinterval()
        try:
            sys.setswitchinterval(1e-6)  # threads take turns at every chance
            for thread in asking + others:
                thread.start()
            for thread in asking + others:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        return time.perf_counter() - start

    def _guarded(self, work: Callable[..., None], *args: int) -> None:
        try:
            with torch.no_grad():
                work(*args)
        except Exception as error:
            with self._lock:
                self.errors[f"{type(error).__name__}: {error}"] += 1
                self.done = self.requests  # nobody waits for what will not come

    def _ask(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while self.done < self.requests:
            size = 1 + rng.integers(3) * int(rng.random() < 0.2)
            users = np.minimum(rng.geometric(0.08, size) - 1, USERS - 1).tolist()
            # Everybody's history grows as time goes by; some see an older page.
            n = EVENTS * self.done // self.requests - (rng.random(size) < 0.05)
            lengths = n.clip(0, EVENTS).tolist()
            asked = [
                first(self.server.requests[user], n)
                for user, n in zip(users, lengths, strict=True)
            ]
            request = asked[0] if size == 1 else Request.stack(asked)
            live = self.server.live  # one read: all that follows is of it
            error = (live.score(request) - live.exact[users, lengths]).abs().max()
            with self._lock:
                self.done += 1
                self.wrong += not error <= live.budget

    def _swap(self) -> None:
        for swap in range(1, 1 + self.swaps):
            while self.done < self.requests * swap / (1 + self.swaps):
                time.sleep(1e-3)
            self.server.deploy()

    def _come_and_go(self) -> None:
        rest = torch.arange(ITEMS - 5, ITEMS)
        while self.done < self.requests and self.server.live.index is not None:
            live = self.server.live
            live.index.remove(rest)
            live.index.add(live.cache.model, rest)


def bytes_off(server: Server) -> int:
    """By how much the caches' counts miss what their entries weigh."""
    off = 0
    for cache in (deployment.cache for deployment in server.deployments):
        entries = cache._entries.values()
        weight = sum(nbytes([entry.events, entry.code]) for entry in entries)
        off += abs(cache.bytes - weight) + max(cache.bytes - cache.max_bytes, 0)
    return off


def serve(name: str, requests: int, threads: int, swaps: int) -> dict:
    """A row: traffic on one ranker, and what was wrong with it."""
    server = Server(name)
    traffic = Traffic(server, requests, threads, swaps)
    seconds = traffic.run()
    outcomes = sum((d.cache.outcomes for d in server.deployments), Counter())
    return {
        "model": name,
        "requests": requests,
        "threads": threads,
        "swaps": len(server.deployments) - 1,
        "wrong": traffic.wrong,
        "errors": sum(traffic.errors.values()),
        "first_error": next(iter(traffic.errors), ""),
        "bytes_off": bytes_off(server),
        **{how.replace(" ", "_"): count for how, count in sorted(outcomes.items())},
        "seconds": round(seconds, 1),
    }


def runs(
    names: Sequence[str] = (), done: Container[tuple] = frozenset()
) -> Iterator[dict]:
    """A row for each ranker: ``wrong``, ``errors`` and ``bytes_off`` should be 0."""
    for name in names or ENCODERS:
        if (name,) not in done:
            yield serve(name, REQUESTS, THREADS, SWAPS)
