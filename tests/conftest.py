"""What the tests share: logs, features, rankers, requests, and error budgets."""

import copy
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

from recsys_edu.batch import History, Request
from recsys_edu.data import Features, InteractionLog
from recsys_edu.data.synthetic import planted_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder, AppendSelfEncoder
from recsys_edu.encoders.base import HistoryEncoder
from recsys_edu.encoders.concat import ConcatEncoder, WideConcat
from recsys_edu.encoders.hstu import HSTU
from recsys_edu.encoders.lime import LimeMHA, LimeXOR
from recsys_edu.encoders.lime_sum import LimeSum
from recsys_edu.encoders.low_rank import LREA, TruncatedMHA
from recsys_edu.encoders.pooling import LengthOnly
from recsys_edu.encoders.pooling import MeanPooling as PackageMeanPooling
from recsys_edu.encoders.stca import STCA
from recsys_edu.encoders.target_attention import DIN
from recsys_edu.encoders.two_tower import TwoTower
from recsys_edu.positions import Absolute, Recency, TimeGap

# A shared machine may stop for a second anywhere; a slow example is not a failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# name -> encoder of width d; mean pooling and DIN have no layers and no heads
ENCODERS = {
    "mean pooling": lambda d, **size: PackageMeanPooling(),
    "DIN": lambda d, **size: DIN(d),
    "length": lambda d, **size: LengthOnly(d, exact=3),
    "concat": ConcatEncoder,
    "concat, wide": WideConcat,
    "append-self": AppendSelfEncoder,
    "append-causal": lambda d, **size: AppendEncoder(d, reads_itself=True, **size),
    "append-cross": lambda d, **size: AppendEncoder(d, causal=False, **size),
    "append-cross, causal": AppendEncoder,
    "STCA": STCA,
    "HSTU": HSTU,
    "two-tower": TwoTower,
    "LIME-MHA": lambda d, layers, **size: LimeMHA(d, r=3, **size),
    "LIME-sum": lambda d, layers, **size: LimeSum(d, r=3, **size),
    "LIME-XOR, one block": lambda d, **size: LimeXOR(d, r=3, **size | dict(layers=1)),
    "LIME-XOR, two blocks": lambda d, **size: LimeXOR(d, r=3, **size | dict(layers=2)),
    "LIME-XOR": lambda d, **size: LimeXOR(d, r=3, **size | dict(layers=3)),
    "truncated MHA": lambda d, layers, **size: TruncatedMHA(d, r=3, **size),
    "LREA": lambda d, layers, **size: LREA(d, r=3, positions=4, **size),
    "naive": lambda d, **size: None,
}
POSITIONS = {
    "none": lambda d: None,
    "absolute": lambda d: Absolute(400, d),
    "recency": lambda d: Recency(400, d),
    "time gap": TimeGap,
}


class MeanPooling(HistoryEncoder):
    """h = (A t) * (B mean(events) + C mean(context)); the mean of no event is 0."""

    def __init__(self, d):
        super().__init__()
        self.item = nn.Linear(d, d, bias=False)
        self.event = nn.Linear(d, d, bias=False)
        self.user = nn.Linear(d, d, bias=False)

    def encode_items(self, items):
        return self.item(items)

    def encode_history(self, events, context):
        total = torch.where(events.mask[..., None], events.vectors, 0).sum(-2)
        mean = total / events.mask.sum(-1, keepdim=True).clamp(min=1)
        return self.event(mean) + self.user(context.mean(-2))

    def fuse(self, items, history):
        return items * history[:, None]


@pytest.fixture(scope="session")
def mean_pooling():
    """A class: `mean_pooling(d)` is the smallest encoder that reads everything."""
    return MeanPooling


@pytest.fixture(scope="session")
def make_features():
    """A function: random features of n users or items, with bags of ragged fill."""

    def make(rng, n, *, dense=0, plain=1, bags=0, width=3):
        sparse = {f"plain_{k}": rng.integers(0, 4, n) for k in range(plain)}
        sparse |= {f"bag_{k}": rng.integers(0, 4, (n, width)) for k in range(bags)}
        return Features(
            dense=rng.normal(size=(n, dense)).astype(np.float32),
            dense_names=tuple(f"dense_{k}" for k in range(dense)),
            sparse=sparse,
            cardinality=dict.fromkeys(sparse, 4),
        )

    return make


@pytest.fixture(scope="session")
def make_log():
    """A function: (user, time) of each event -> a log whose row e shows item e."""

    def ids(name, n):
        return Features.fit(np.arange(n), sparse={name: np.arange(n)})

    def make(events, **columns):
        user, timestamp = np.array(sorted(events, key=lambda event: event[1])).T
        n, n_users = len(user), int(user.max()) + 1
        log = dict(
            user=user,
            item=np.arange(n),
            timestamp=timestamp,
            label=(np.arange(n) % 2).astype(np.float32),
            action=np.arange(n) % 5,
            users=ids("user_id", n_users),
            items=ids("item_id", n),
            item_titles=None,
            actions=(0, 1, 2, 3, 4),
            name="toy",
        )
        return InteractionLog(**log | columns)

    return make


@pytest.fixture(scope="session")
def world():
    """400 impressions of 12 users and 30 items."""
    return planted_world(seed=1, n_impressions=400, n_users=12, n_items=30)


@dataclass(frozen=True)
class Ranker:
    """One model in two precisions, in eval mode: the same weights, to the bit."""

    float32: DLRM
    float64: DLRM


@pytest.fixture(scope="session")
def make_model(world):
    """A function: encoder, shape, positions -> a new ranker with random weights."""

    def make(name, d=8, layers=2, heads=2, positions="none", dropout=0.1):
        log = world.log
        torch.manual_seed(0)
        when = POSITIONS[positions](d)
        embeddings = Embeddings(log.users, log.items, log.events, d, positions=when)
        encoder = ENCODERS[name](d, layers=layers, heads=heads, dropout=dropout)
        model = DLRM(embeddings, encoder).eval()
        for weight in model.parameters():  # large enough for all parts to be heard
            nn.init.normal_(weight, std=0.3)
        return model

    return make


@pytest.fixture(scope="session")
def ranker(make_model):
    """A function: as `make_model`, made once and in both precisions. Do not train it.

    The sizes take every count of layers from 1 to 3 and heads of 1, 2 and 4.
    """

    @cache
    def get(name, size=0, positions=None):
        d, layers, heads, default = [
            (8, 2, 2, "none"),
            (4, 1, 1, "absolute"),
            (8, 3, 4, "time gap"),
            (6, 2, 1, "recency"),
        ][size]
        model = make_model(name, d, layers, heads, positions or default)
        return Ranker(model, copy.deepcopy(model).double())

    return get


@pytest.fixture(scope="session")
def draw_history():
    """A function: b histories of at most n events among 30 items, oldest first.

    Lengths, some of them 0, and how many of the padded places come before the events
    are drawn. Padding holds what an event could hold, so that a test sees it being
    read.
    """

    def draw(rng, b, n, *, side="right", full=False):
        length = np.full((b, 1), n) if full else rng.integers(0, n + 1, (b, 1))
        first = {
            "any": rng.integers(0, n - length + 1),
            "left": n - length,
            "right": 0 * length,
        }[side]
        column = np.arange(n)
        mask = (column >= first) & (column < first + length)
        seconds = np.sort(2 ** rng.integers(0, 27, (b, n)), axis=1)
        parts = rng.integers(0, 30, (b, n)), rng.integers(0, 2, (b, n)), seconds, mask
        return History(*map(torch.from_numpy, parts))

    return draw


@pytest.fixture(scope="session")
def draw_request(draw_history):
    """A function: b requests of m candidates, with histories by `draw_history`."""

    def draw(seed, b, n, m, **history):
        rng = np.random.default_rng(seed)
        user, candidates = rng.integers(0, 12, b), rng.integers(0, 30, (b, m))
        events = draw_history(rng, b, n, **history)
        # Seconds to half a year after the latest that an event may be.
        timestamp = 2**26 + 2 ** rng.integers(0, 25, (b, 1))
        drawn = user, timestamp, candidates
        return Request(*map(torch.from_numpy, drawn), history=events)

    return draw


@pytest.fixture(scope="session")
def unpadded():
    """A function: row b of a request, B = 1, with nothing but events in its history."""

    def cut(request, b):
        row = request[b : b + 1]
        keep = row.history.mask[0]
        history = row.history.map(lambda t: t[:, keep])
        return Request(row.user, row.timestamp, row.candidates, history)

    return cut


@pytest.fixture(scope="session")
def assert_same():
    """A function: ``form`` computes what ``oracle`` does, within a derived budget.

    Both are functions of a model. The truth is the oracle in float64. In float32 the
    form may miss it by twice what the oracle itself misses it in float32, plus 64
    roundings of the largest number, one for each operation on the longest path from an
    embedding to a logit. In float64 that budget shrinks by 2^-29, the ratio of the two
    unit roundoffs.
    """

    @torch.no_grad()
    def check(form, oracle, ranker):
        exact, reference = oracle(ranker.float64), oracle(ranker.float32)
        got64, got32 = form(ranker.float64), form(ranker.float32)
        assert got32.shape == got64.shape == exact.shape
        if exact.numel() == 0:
            return
        rounding = 64 * 2**-24 * exact.abs().max().clamp(min=1)
        budget = 2 * (reference - exact).abs().max() + rounding
        assert (got32 - exact).abs().max() <= budget
        assert (got64 - exact).abs().max() <= 2**-29 * budget

    return check
