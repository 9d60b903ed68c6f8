"""What the fastest exact form of each design gains over the form it had before.

Takes three minutes. ``old`` is the form of commit 75766bd, which lives here and nowhere
else: a mask of N x N where a kernel knows what causal means, scores written to memory,
a look-up for all heads at once, a set of queries for each prefix. Weights and inputs
are the same, times are of one thread and interleaved, and ``error`` is the largest
difference of the results over the largest of them.

The memory rows run each form in a process of its own, whose largest size they give.
"""

from __future__ import annotations

import copy
import multiprocessing
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_edu.attention.heads import join_heads, split_heads
from recsys_edu.attention.pointwise import PointwiseBlock
from recsys_edu.attention.prefill import prefill
from recsys_edu.attention.softmax import TransformerBlock
from recsys_edu.bench import compare, ratio
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder, KeyValueCache
from recsys_edu.encoders.base import Events, HistoryEncoder, readable
from recsys_edu.encoders.hstu import HSTU, RelativeBias, TimedCache
from recsys_edu.encoders.lime import LimeMHA, LimeXOR, PointwiseLinks, SoftmaxLinks
from recsys_edu.experiments.latency import LAYERS, D, R, request, world
from recsys_edu.experiments.quality import MODELS, task
from recsys_edu.experiments.quality import D as TRAINED_D
from recsys_edu.experiments.quality import R as TRAINED_R
from recsys_edu.training import HISTORY, log_loss

KEY = ("what", "N")
SIZES = {
    "append-cross request": (1024, 4096, 16_384),
    "append-cross extend": (4096,),
    "append-cross request, peak memory": (16_384,),
    "append-causal candidates": (1024,),
    "HSTU request": (1024, 4096, 16_384),
    "LIME-MHA request": (16_384,),
    "LIME-XOR request": (16_384,),
    "LIME-MHA training": (50,),
    "LIME-XOR training": (50,),
    "HSTU training": (50,),
}
"""N, the events of a request or, in training, those that an impression may see."""

BARS = {
    ("append-cross request", 1024): 1.4,
    ("append-cross request", 4096): 3.0,
    ("append-cross request", 16_384): 3.5,
    ("append-cross extend", 4096): 4.0,
    ("append-causal candidates", 1024): 1.8,
    ("LIME-MHA training", 50): 1.4,
    ("HSTU training", 50): 1.2,
}
"""What ``times`` is to be at least, where something was promised."""

M = 4096  # candidates
MICRO_BATCHES = (64, 256, 1024)  # each form takes its best
ROUNDS = 7
Run = Callable[[], Tensor]


# --- the forms of 75766bd -------------------------------------------------------------


class MaskedAppend(AppendEncoder):
    """A causal history under a mask [N, N], and what is extended under one too."""

    def encode_history(self, events: Events, context: Tensor) -> KeyValueCache:
        """As in the base, in the old form."""
        begun = self.begin(events)
        k, v = self._masked(begun.vectors, self.both(begun.mask), None)
        return KeyValueCache(k, v, readable(begun.mask, begun.visible))

    def extend(
        self, code: KeyValueCache, new: Events, context: Tensor
    ) -> KeyValueCache:
        """As in the base, in the old form."""
        mask = torch.cat([code.mask, new.mask.unsqueeze(1)], dim=-1)
        allowed = self.both(mask.squeeze(1))[:, :, code.k.shape[3] :]
        k, v = self._masked(self.dropout(new.vectors), allowed, (code.k, code.v))
        return KeyValueCache(k, v, mask)

    def both(self, mask: Tensor) -> Tensor:
        """The keys that are there, of those that are not later: [B, 1, T, T]."""
        t = mask.shape[1]
        later = torch.ones(t, t, dtype=torch.bool, device=mask.device).tril()
        return mask[:, None, None, :] & later

    def _masked(
        self, x: Tensor, allowed: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        def run(layer: int, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.blocks[layer](x, k, v, allowed)

        return prefill(self.blocks, x, run, past)


class ScoresWritten(TransformerBlock):
    """A token's own score is one more column of scores that are written to memory."""

    def forward(
        self,
        x: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        *,
        causal: bool = False,
        reads_itself: bool = False,
    ) -> Tensor:
        """As in the base, in the old form."""
        if not reads_itself:
            return super().forward(x, k, v, mask, causal=causal)
        q = split_heads(self.query(self.norm_attention(x)), self.heads)
        k_own, v_own = self.keys_values(x)
        scale = q.shape[-1] ** -0.5
        shared = q @ k.transpose(-1, -2) * scale
        if mask is not None:
            shared = shared.masked_fill(~mask, float("-inf"))
        own = (q * k_own).sum(-1, keepdim=True) * scale
        weights = torch.cat([shared, own], dim=-1).softmax(dim=-1)
        read = weights[..., :-1] @ v + weights[..., -1:] * v_own
        x = x + self.dropout(self.out(join_heads(read)))
        return x + self.dropout(self.ffn(self.norm_ffn(x)))


class HeadsTogether(RelativeBias):
    """One look-up for all heads, moved to where they belong afterwards."""

    def forward(self, rows: Tensor) -> Tensor:
        """As in the base, in the old form."""
        table = (self.position.unsqueeze(1) + self.time).flatten(0, 1)
        return F.embedding(rows, table).movedim(-1, 1)


def old_pointwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    n: Tensor | int,
    bias: Tensor | None = None,
) -> Tensor:
    """Each step of the formula a tensor of its own."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = F.silu(scores if bias is None else scores + bias)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    return weights @ v / n


def old_bucket(distance: Tensor) -> Tensor:
    """Buckets found in int64."""
    edges = 2 ** torch.arange(1, 26, device=distance.device) - 1
    return torch.bucketize(distance, edges, out_int32=True, right=True)


class PairByPair(HSTU):
    """Positions counted in every row, and bucketed pair by pair."""

    def encode_history(self, events: Events, context: Tensor) -> TimedCache:
        """As in the base, in the old form."""
        kept = None
        for first in range(0, max(events.mask.shape[1], 1), 512):
            mask = events.mask[:, : first + 512]
            seconds = events.timestamp[:, : first + 512]
            kept = self._pairs(
                events.vectors[:, first : first + 512], mask, seconds, kept
            )
        allowed = readable(events.mask, events.visible)
        return TimedCache(*kept, allowed, events.timestamp, events.now)

    def _pairs(
        self,
        x: Tensor,
        mask: Tensor,
        timestamp: Tensor,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        x, since = self.dropout(x), mask.shape[1] - x.shape[1]
        position, time_ = mask.cumsum(1).unsqueeze(1), timestamp.unsqueeze(1)
        own, now = position[..., since:].mT, time_[..., since:].mT
        rows = old_bucket(own - position) * 26 + old_bucket(now - time_)
        allowed = (mask.unsqueeze(1) & (position <= own)).unsqueeze(1)
        n = own.clamp(min=1).unsqueeze(1)

        def run(layer: int, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
            bias = self.biases[layer](rows)
            return self.blocks[layer](x, k, v, allowed, n, bias, None, old_pointwise)

        return prefill(self.blocks, x, run, past)

    def fuse(self, items: Tensor, history: TimedCache) -> Tensor:
        """As in the base, in the old form."""
        x = self.dropout(items.expand(len(history.mask), *items.shape[-2:]))
        n = history.mask.sum(-1, keepdim=True) + 1
        seconds = history.now.unsqueeze(-1) - history.timestamp.unsqueeze(1)
        rows = old_bucket(n - history.mask.cumsum(-1)) * 26 + old_bucket(seconds)
        allowed, n = history.mask.unsqueeze(1), n.unsqueeze(1)
        for layer, (block, bias) in enumerate(self.layers()):
            k, v = history.k[:, layer], history.v[:, layer]
            x = block(x, k, v, allowed, n, bias(rows), bias.itself, old_pointwise)
        return self.norm(x)


def old_lse(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Two softmaxes of scores that are written to memory."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1)


class QueriesForEach(LimeMHA):
    """M sets of queries, each of which reads its prefix by itself."""

    def encode_history(self, events: Events, context: Tensor) -> SoftmaxLinks:
        """As in the base, in the old form."""
        start = self.start.expand(len(events.mask), 1, -1)
        k, v = self.attention.keys_values(
            self.dropout(torch.cat([start, events.vectors], dim=1))
        )
        mask = F.pad(readable(events.mask, events.visible), (1, 0), value=True)
        links = self.contextual(context)
        q = self.attention.queries(links).repeat(1, 1, mask.shape[1], 1)
        allowed = mask.repeat_interleave(len(self.links), dim=1).unsqueeze(1)
        return self._code(links, *old_lse(q, k, v, allowed))


class SumsForEach(LimeXOR):
    """M sets of links, each of which reads its prefix by itself."""

    def encode_history(self, events: Events, context: Tensor) -> PointwiseLinks:
        """As in the base, in the old form."""
        r = len(self.links)
        mask = readable(events.mask, events.visible).repeat_interleave(r, dim=1)
        mask, count = mask.unsqueeze(1), self.normaliser(mask)
        links = self.contextual(context).repeat(1, count.shape[1] // r, 1)
        x = self.dropout(events.vectors)
        *blocks, last = self.blocks
        for block in blocks:
            k, v = block.keys_values(links[:, :r])
            u, q = block.gate_queries(x)
            read = block.update(x, u, old_pointwise(q, k, v, None, r))
            links, x = self._read(block, links, x, mask, count)[0], read
        links, total = self._read(last, links, x, mask, count)
        return self._code(links, total, count)

    def _read(
        self, block: PointwiseBlock, links: Tensor, x: Tensor, mask: Tensor, n: Tensor
    ) -> tuple[Tensor, Tensor]:
        u, q = block.gate_queries(links)
        total = old_pointwise(q, *block.keys_values(x), mask, 1)
        read = total / n.clamp(min=1)[:, None, :, None]
        return block.update(links, u, read), total


OLD = {
    AppendEncoder: MaskedAppend,
    HSTU: PairByPair,
    LimeMHA: QueriesForEach,
    LimeXOR: SumsForEach,
    TransformerBlock: ScoresWritten,
    RelativeBias: HeadsTogether,
}


def old_form(model: nn.Module) -> nn.Module:
    """A copy with the same weights, computed as at 75766bd."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) in OLD:
            module.__class__ = OLD[type(module)]
    return model


# --- what is timed --------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A piece of work in both forms; what they return is compared."""

    old: Run
    new: Run

    @classmethod
    def of(cls, model: nn.Module, work: Callable[[nn.Module], Run]) -> Pair:
        """The same work with a model's old form and with the model."""
        return cls(work(old_form(model)), work(model))


def ranker(encoder: HistoryEncoder) -> DLRM:
    """A ranker of :mod:`recsys_edu.experiments.latency`'s world, random weights."""
    log = world()
    return DLRM(Embeddings(log.users, log.items, log.events, D), encoder).eval()


def whole_request(encoder: Callable[..., HistoryEncoder], n: int) -> Pair:
    """The request clock of an encoder, from event vectors to its code."""
    torch.manual_seed(0)
    model = ranker(encoder())
    at = request(n, 1)
    with torch.no_grad():
        events, context = model.events(at), model.embeddings.users(at.user)

    def work(encoder: HistoryEncoder) -> Run:
        return lambda: _numbers(encoder.encode_history(events, context))

    return Pair.of(model.encoder, work)


def extended(n: int) -> Pair:
    """One event more behind n others, in append-cross."""
    torch.manual_seed(0)
    model = ranker(AppendEncoder(D, layers=LAYERS))
    at = request(n + 1, 1)
    with torch.no_grad():
        events, context = model.events(at), model.embeddings.users(at.user)
        past, new = (
            replace(
                events,
                vectors=events.vectors[:, part],
                mask=events.mask[:, part],
                timestamp=events.timestamp[:, part],
            )
            for part in (slice(n), slice(n, None))
        )
        code = model.encoder.encode_history(past, context)

    def work(encoder: HistoryEncoder) -> Run:
        return lambda: _numbers(encoder.extend(code, new, context))

    return Pair.of(model.encoder, work)


def candidates(n: int) -> Pair:
    """M candidates of append-causal, each form in its best micro-batch."""
    torch.manual_seed(0)
    model = ranker(AppendEncoder(D, layers=LAYERS, reads_itself=True))
    at = request(n, M)
    with torch.no_grad():
        events, context = model.events(at), model.embeddings.users(at.user)
        items = model.embeddings.items(at.candidates).sum(-2)
        code = model.encoder.encode_history(events, context)

    def work(encoder: HistoryEncoder) -> Run:
        def run(size: int) -> Tensor:
            parts = items.split(size, dim=1)
            return torch.cat([encoder.fuse(part, code) for part in parts], dim=1)

        timings = compare({b: partial(run, b) for b in MICRO_BATCHES}, rounds=3)
        return partial(run, min(timings, key=lambda b: timings[b].median))

    return Pair.of(model.encoder, work)


def _numbers(code: object) -> Tensor:
    """All that a code holds, the keys and values or the links, as one tensor."""
    if isinstance(code, KeyValueCache | TimedCache):
        return torch.stack([code.k, code.v])
    return code.links


def training(encoder: Callable[..., HistoryEncoder], n: int) -> Pair:
    """Steps of amortized training over ten batches, by the recipe of ``quality``.

    The learning rate is 0, so that both forms go on having the same weights.
    """
    given = task("100K", "rating")
    log = given.log
    batching = partial(HISTORY.batching, max_events=n)
    batches = list(batching(log, given.histories, given.split.train))
    batches = batches[:: max(len(batches) // 10, 1)][:10]
    torch.manual_seed(0)
    users = log.users.without(*MODELS["HSTU"].left_out)
    embeddings = Embeddings(users, log.items, log.events, TRAINED_D)
    model = DLRM(embeddings, encoder()).train()

    def work(model: DLRM) -> Run:
        optimizer = replace(HISTORY, learning_rate=0.0).optimizer(model)

        @torch.enable_grad()
        def run() -> Tensor:
            losses = []
            for batch in batches:
                optimizer.zero_grad()
                loss = log_loss(model(batch.request), batch)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            return torch.cat([torch.stack(losses), *grads])

        return run

    return Pair.of(model, work)


def _append(**options: bool) -> Callable[[], HistoryEncoder]:
    return partial(AppendEncoder, D, layers=LAYERS, **options)


def _trained(encoder: Callable[..., HistoryEncoder], **options: int) -> Callable:
    return partial(encoder, TRAINED_D, heads=2, dropout=0.0, **options)


WORK: dict[str, Callable[[int], Pair]] = {
    "append-cross request": partial(whole_request, _append()),
    "append-cross extend": extended,
    "append-causal candidates": candidates,
    "HSTU request": partial(whole_request, partial(HSTU, D, layers=LAYERS)),
    "LIME-MHA request": partial(whole_request, partial(LimeMHA, D, r=R)),
    "LIME-XOR request": partial(whole_request, partial(LimeXOR, D, r=R, layers=LAYERS)),
    "LIME-MHA training": partial(training, _trained(LimeMHA, r=TRAINED_R)),
    "LIME-XOR training": partial(training, _trained(LimeXOR, r=TRAINED_R, layers=2)),
    "HSTU training": partial(training, _trained(HSTU, layers=2)),
}
MEMORY = "append-cross request, peak memory"


@torch.no_grad()
def runs(
    names: Sequence[str] = (), done: Collection[tuple] = frozenset()
) -> Iterator[dict]:
    """A row for each piece of work of :data:`SIZES`, or for those that are named.

    ``times`` is old over new, round by round, with its quartiles ``low`` and ``high``;
    ``bar`` is what it is to be at least.

    Raises:
        KeyError: a name that is none.
    """
    if unknown := set(names) - set(SIZES):
        raise KeyError(f"no form {sorted(unknown)}; there are {list(SIZES)}")
    for what in names or SIZES:
        for n in SIZES[what]:
            if (what, n) not in done:
                numbers = memory(n) if what == MEMORY else times(what, n)
                yield {"what": what, "N": n, "bar": BARS.get((what, n))} | numbers


def times(what: str, n: int) -> dict[str, float]:
    """Both forms of a piece of work, timed in turns and compared."""
    pair = WORK[what](n)
    old, new = pair.old(), pair.new()
    error = (old - new).abs().max() / old.abs().max()
    timings = compare(
        {"old": pair.old, "new": pair.new}, rounds=ROUNDS, timer=time.process_time
    )
    faster = ratio(timings["old"], timings["new"])
    numbers = {
        "old_seconds": timings["old"].median,
        "new_seconds": timings["new"].median,
        "times": faster.median,
        "low": faster.low,
        "high": faster.high,
        "error": float(error),
    }
    return {name: float(f"{number:.4g}") for name, number in numbers.items()}


def memory(n: int) -> dict[str, float]:
    """The largest size of a process that encodes one request in either form, in MB."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        old, new = pool.starmap(peak, [("old", n), ("new", n)], chunksize=1)
    numbers = {"old_megabytes": old, "new_megabytes": new, "times": old / new}
    return {name: float(f"{number:.4g}") for name, number in numbers.items()}


@torch.no_grad()
def peak(form: str, n: int) -> float:
    """The largest size of this process after a request of append-cross, in MB."""
    torch.set_num_threads(1)
    getattr(WORK["append-cross request"](n), form)()
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1e3
