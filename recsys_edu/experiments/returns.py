"""Interest that returns after hundreds of events: what r rows can keep of a history.

A planted world in which a user stays with a topic for :data:`DWELL` impressions and
comes back to it after all others. On the first row of a return, the last r events are
about something else: whoever reads them alone knows what a stranger knows. r links can
know all there is to know: :func:`by_hand` sets the weights of a LIME-MHA that does.
What training finds, ``python -m recsys_edu.experiments returns`` records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn

from recsys_edu.batch import Request, user_batches
from recsys_edu.data import Histories, Split
from recsys_edu.data.synthetic import PlantedWorld, planted_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.base import HistoryEncoder
from recsys_edu.encoders.hstu import HSTU
from recsys_edu.encoders.lime import LimeMHA, LimeXOR
from recsys_edu.encoders.low_rank import LREA, TruncatedMHA
from recsys_edu.encoders.two_tower import TwoTower
from recsys_edu.metrics import expected_auc
from recsys_edu.training import Fit, Recipe, fit, score_rows

TOPICS, DWELL = 8, 32  # a topic returns after 224 events
R = TOPICS  # links of LIME, and rows of the baselines that keep as many
D = 32  # width of every vector
LONGEST = 512  # events of a history: later rows are neither trained on nor tested
SEEDS = (0, 1, 2)  # of the world and of the training in it
USERS = {"train": 200, "validation": 50, "test": 300}

RECIPE = Recipe(
    batching=partial(user_batches, max_candidates=128, max_tokens=2048),
    learning_rate=4e-3,
    weight_decay=0.1,
    averaging=0.98,
    max_epochs=7,
)

CEILINGS: dict[str, int | None] = {
    "ceiling without history": 0,
    f"ceiling of the last {R} events": R,
    "ceiling of the whole history": None,
}
"""Events that a best guess knows, by the name under which its AUC is recorded."""

BY_HAND = "LIME-MHA, set by hand"

MODELS: dict[str, Callable[[], HistoryEncoder]] = {
    "truncated MHA": partial(TruncatedMHA, D, r=R, dropout=0.0),
    "LREA": partial(LREA, D, r=R, positions=LONGEST, dropout=0.0),
    "two-tower": partial(TwoTower, D, layers=2, heads=2, dropout=0.0),
    "LIME-MHA": partial(LimeMHA, D, r=R, dropout=0.0),
    "LIME-XOR": partial(LimeXOR, D, r=R, layers=2, dropout=0.0),
    "HSTU": partial(HSTU, D, layers=2, heads=2, dropout=0.0),
}

NAMES = (*CEILINGS, BY_HAND, *MODELS)
"""What is recorded."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A planted world of returns, split by user."""

    world: PlantedWorld
    histories: Histories
    split: Split  # no user is in two parts
    # [len(split.test)] bool, rows whose topic is known, but not from the last R events
    returned: np.ndarray


@cache
def dataset(seed: int) -> Dataset:
    """The world of this seed: all items of a topic are alike, segments say nothing."""
    world = planted_world(
        seed=seed,
        n_users=sum(USERS.values()),
        n_impressions=400 * sum(USERS.values()),
        n_items=200,
        n_topics=TOPICS,
        quality=0.0,
        rho=0.0,
        dwell=DWELL,
    )
    histories = Histories.from_log(world.log)
    part = np.repeat(np.arange(3), list(USERS.values()))[world.log.user]  # [E]
    part[histories.end - histories.start >= LONGEST] = -1
    split = Split(*(np.flatnonzero(part == number) for number in range(3)))
    returned = world.absence(histories)[split.test] >= R
    return Dataset(world, histories, split, returned)


def prior(world: PlantedWorld) -> tuple[float, float]:
    """Mean m of p over users, and the number b of events that it is worth.

    For items that are all alike. After c clicks in n events of a topic, the best guess
    of p that is linear in c is (c + b m) / (n + b), with b = m (1 - m) / var(p) - 1.
    """
    z, weight = np.polynomial.hermite_e.hermegauss(64)
    weight /= weight.sum()
    p = expit(world.public_logit[0] + world.private_strength * z)
    mean = weight @ p
    return float(mean), float(mean * (1 - mean) / (weight @ (p - mean) ** 2) - 1)


SHARP = 100.0
"""Score of a match over that of none: e^-100 of a weight is lost to others."""

LARGE = 10.0
"""Size of a link beside what it reads, which hardly moves its norm then."""


@torch.no_grad()
def by_hand(world: PlantedWorld) -> DLRM:
    """A LIME-MHA with one link for each topic and d = topics + 5, nothing trained.

    ::

        item, event   e_topic,  e_topic + e_action
        start         e_start + e_one
        link k        10 (e_k + e_start), reads the events of topic k and the start
        L^P_k         norm(link k + [skips, clicks, 1] / (n + b))
        logit         (clicks + b m) / (n + b), up to a factor: see :func:`prior`

    The start event, weighed like b events, is all that shrinks a small sample. Nothing
    is lost to the norms. All vectors that one of the first three reads have one mean
    and variance, so that it can be set to undo itself; the last one leaves the ratios.

    Raises:
        ValueError: the world's quality or rho is not 0.
    """
    if np.ptp(world.public_logit) > 0:
        raise ValueError(
            "items of this world differ, or segments do: counts are all there is to "
            "know where quality 0 and rho 0 make them alike"
        )
    log, k = world.log, int(world.topic.max()) + 1
    mean, worth = prior(world)
    d = k + 5
    skip, click, start, one, zero = torch.eye(d)[k:]
    topics = torch.eye(d)[:k]
    features = log.users.without("user_id"), log.items.without("item_id")
    encoder = LimeMHA(d, r=k, heads=1, dropout=0.0)
    model = DLRM(Embeddings(*features, log.events, d), encoder, hidden=(1,))
    for weight in model.parameters():
        weight.zero_()
    model.embeddings.items.tables["topic"].weight[1:] = topics  # 0 is the unknown
    model.embeddings.actions.weight[1:].copy_(torch.stack([skip, click]))
    encoder.start.copy_(start + one)
    encoder.links.copy_(LARGE * (topics + start))
    _undo(encoder.norm_item, topics[0])
    _undo(encoder.attention.norm_key, topics[0] + skip)
    _undo(encoder.attention.norm_query, encoder.links[0])
    encoder.norm.weight.fill_(1.0)
    # Scores are divided by the root of d.
    match = SHARP * d**0.5 * topics.sum(0)
    encoder.item_query.weight.copy_(match.diag())
    encoder.link_key.weight.copy_(topics.sum(0).diag() / LARGE)
    match += (SHARP + math.log(worth)) * d**0.5 * start
    attention = encoder.attention
    attention.query.weight.copy_(match.diag() / LARGE)
    attention.key_value.weight[:d] = torch.eye(d)
    attention.key_value.weight[d:] = (skip + click + one / worth).diag()
    attention.out.weight.copy_(torch.eye(d))
    # h is the last part of what the top MLP reads; its one hidden unit is positive.
    model.top.cross.weight[0, -d:] = click - zero + worth * mean * (one - zero)
    model.top.rest[-1].weight.fill_(1.0)
    return model.eval()


def _undo(norm: nn.LayerNorm, example: Tensor) -> None:
    """Sets a norm to leave vectors of this one's mean and variance as they are."""
    norm.weight.fill_((example.var(correction=0) + norm.eps).sqrt())
    norm.bias.fill_(example.mean())


@torch.no_grad()
def counts(model: DLRM, request: Request) -> Tensor:
    """Clicks and skips among the events of each candidate's topic, [2, B, M].

    Read from h of the model :func:`by_hand`, that is from the links and nothing else.
    Where items are alike these two numbers are all that is to be known of a history.
    """
    items, history = (
        model.encode_items(request.candidates),
        model.encode_request(request),
    )
    h = model.encoder.fuse(items.code, history.code)
    skip, click, _, one, zero = h[..., -5:].movedim(-1, 0)
    return torch.stack([click - zero, skip - zero]) / (one - zero)


def train(name: str, seed: int) -> tuple[DLRM, Fit]:
    """Trains ``MODELS[name]`` in the world of the seed.

    Raises:
        KeyError: there is no such model.
    """
    encoder, data = MODELS[name], dataset(seed)
    log = data.world.log
    torch.manual_seed(seed)
    features = log.users.without("user_id"), log.items.without("item_id")
    ranker = DLRM(Embeddings(*features, log.events, D), encoder())
    return ranker, fit(ranker, log, data.histories, data.split, RECIPE, seed=seed)


def score(ranker: DLRM, seed: int) -> np.ndarray:
    """Click probabilities [len(test)] of the test rows, by their whole histories."""
    data = dataset(seed)
    rows = data.split.test
    return score_rows(
        ranker, data.world.log, data.histories, rows, batching=RECIPE.batching
    )


def assess(guess: np.ndarray, seed: int) -> dict[str, float]:
    """Expected AUC of guesses for the test rows: over the returns, and over all."""
    data = dataset(seed)
    p = data.world.probability[data.split.test]
    returned = data.returned
    return {
        "auc_returned": round(expected_auc(guess[returned], p[returned]), 5),
        "auc": round(expected_auc(guess, p), 5),
    }


def runs(models: Sequence[str] = ()) -> Iterator[dict]:
    """One row for each seed and each ceiling and model (all, if none is named).

    Raises:
        KeyError: a model that there is not.
    """
    if unknown := set(models) - set(NAMES):
        raise KeyError(f"no model {sorted(unknown)}; there are {list(NAMES)}")
    for seed in SEEDS:
        for name in models or NAMES:
            yield _run(name, seed)


def _run(name: str, seed: int) -> dict:
    data = dataset(seed)
    epochs, seconds = 0, 0.0
    if name in CEILINGS:
        guess = data.world.best_guess(data.histories, CEILINGS[name])[data.split.test]
    elif name == BY_HAND:
        guess = score(by_hand(data.world), seed)
    else:
        ranker, fitted = train(name, seed)
        guess, epochs, seconds = score(ranker, seed), len(fitted.epochs), fitted.seconds
    return {
        "model": name,
        "seed": seed,
        **assess(guess, seed),
        "epochs": epochs,
        "seconds": round(seconds, 1),
    }
