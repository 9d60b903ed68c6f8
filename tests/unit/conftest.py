"""What the unit tests share: generated logs and features, and an encoder."""

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

from recsys_edu.data import Features, InteractionLog
from recsys_edu.encoders.base import HistoryEncoder

# A shared machine may stop for a second anywhere; a slow example is not a failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


class MeanPooling(HistoryEncoder):
    """h = (A t) * (B mean(events) + C mean(context)); the mean of no event is 0."""

    def __init__(self, d):
        super().__init__()
        self.item = nn.Linear(d, d, bias=False)
        self.event = nn.Linear(d, d, bias=False)
        self.user = nn.Linear(d, d, bias=False)

    def encode_items(self, items):
        return self.item(items)

    def encode_history(self, history, mask, context, visible=None):
        total = torch.where(mask[..., None], history, 0).sum(-2)
        mean = total / mask.sum(-1, keepdim=True).clamp(min=1)
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
        return Features.from_columns({}, {name: np.arange(n) + 1})

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
            user_ids=np.arange(n_users),
            item_ids=np.arange(n),
            item_titles=None,
            n_actions=5,
            name="toy",
        )
        return InteractionLog(**log | columns)

    return make
