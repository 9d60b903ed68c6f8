"""What early fusion is worth: users with 1, 2, 4 or 8 interests at once.

A world of several interests, 256 topics read by vectors of width 16. Whoever sums a
history first and then compares, as a user vector does, adds j topics that interfere:
the topic of an interest stands 1/j high over noise of about sqrt(j / d) / j, so that
what is lost grows with sqrt(j / d). Whoever compares first, event by event, and then
sums, can be as sharp as it likes before the sum. Links lie between: r sums of d
numbers. With 16 topics in width 16 there would be no noise, and nothing to gain.

One model ranks all users, and is judged on those of each j by themselves: expected
metrics, given the choice model and what the history tells. Each is trained at every
rate of :data:`RATES`, and validation NE chooses. Takes 25 minutes on two cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context

import numpy as np
import torch

from recsys_edu.batch import batches, user_batches
from recsys_edu.data import Histories, Split
from recsys_edu.data.interests import InterestWorld, interest_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder
from recsys_edu.encoders.base import HistoryEncoder
from recsys_edu.encoders.concat import ConcatEncoder
from recsys_edu.encoders.hstu import HSTU
from recsys_edu.encoders.lime import LimeMHA
from recsys_edu.encoders.pooling import MeanPooling
from recsys_edu.encoders.target_attention import DIN
from recsys_edu.encoders.two_tower import TwoTower
from recsys_edu.ranking import expected_choice
from recsys_edu.training import Batching, Fit, Recipe, fit, score_rows

KEY = ("model", "interests", "seed")
INTERESTS = (1, 2, 4, 8)
TOPICS = 256
D = 16  # width of every vector, unless a model's name says another
SEEDS = (0, 1, 2)  # of the world and of the training in it
USERS = {"train": 3_000, "validation": 200, "test": 400}
CANDIDATES = {"train": 5, "validation": 5, "test": 50}
RATES = (4e-3, 8e-3)

AMORTIZED = partial(user_batches, max_tokens=2048)
BY_REQUEST = partial(batches, batch_size=64, max_events=64)


@dataclass(frozen=True)
class Model:
    """How one model is made and trained."""

    encoder: Callable[[int], HistoryEncoder | None]
    d: int = D
    batching: Batching = AMORTIZED
    max_epochs: int = 12

    def recipe(self, rate: float) -> Recipe:
        """Until three epochs in a row are no better than the best."""
        return Recipe(
            batching=self.batching,
            learning_rate=rate,
            weight_decay=0.1,
            averaging=0.98,
            max_epochs=self.max_epochs,
            patience=3,
        )


def _pooling(d: int) -> MeanPooling:
    return MeanPooling()


def _nothing(d: int) -> None:
    return None


def _transformer(encoder: type[HistoryEncoder]) -> Callable[[int], HistoryEncoder]:
    return partial(encoder, layers=2, heads=2, dropout=0.0)


MODELS: dict[str, Model] = {
    "naive DLRM": Model(_nothing),
    "mean pooling": Model(_pooling),
    "mean pooling, d = 64": Model(_pooling, 64),
    "mean pooling, d = 256": Model(_pooling, 256),
    "two-tower": Model(_transformer(TwoTower)),
    "two-tower, d = 64": Model(_transformer(TwoTower), 64),
    **{
        f"LIME-MHA, r = {r}": Model(partial(LimeMHA, r=r, dropout=0.0))
        for r in (2, 8, 16)
    },
    "DIN": Model(DIN),
    # An epoch takes ten times as long as append-cross's; later ones gained nothing.
    "concat": Model(_transformer(ConcatEncoder), batching=BY_REQUEST, max_epochs=6),
    "append-cross, causal": Model(_transformer(AppendEncoder)),
    "HSTU": Model(_transformer(HSTU)),
    # Two heads compare in 8 numbers each, one compares in 16.
    "HSTU, one head": Model(partial(HSTU, layers=2, heads=1, dropout=0.0)),
}

KNOWN = "ceiling, interests known"
CEILINGS: dict[str, int | None] = {
    "ceiling of the last 8 events": 8,
    "ceiling of the history": None,
}
"""Events that a best guess knows, by the name under which its metrics are recorded."""

SHARP = 20.0
"""Of two topics whose vectors have cosine c, exp(20 (c - 1)): 1 for c = 1."""

BY_HAND: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sum, then compare": lambda cosine: cosine,
    "compare, then sum": lambda cosine: np.exp(SHARP * (cosine - 1)),
}
"""What an event says for a candidate, see :func:`by_hand`."""

NAMES = (KNOWN, *CEILINGS, *BY_HAND, *MODELS)
"""What is recorded."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A world of interests, split by user."""

    world: InterestWorld
    histories: Histories
    split: Split  # no user is in two parts
    p: np.ndarray  # [len(split.test)] the best guess by the history


@cache
def dataset(seed: int) -> Dataset:
    """The world of this seed."""
    users = list(USERS.values())
    world = interest_world(
        seed=seed,
        n_users=sum(users),
        n_topics=TOPICS,
        interests=INTERESTS,
        candidates=np.repeat(list(CANDIDATES.values()), users),
    )
    histories = Histories.from_log(world.log)
    part = np.repeat(np.arange(3), users)[world.log.user]
    part[~world.asked] = -1
    split = Split(*(np.flatnonzero(part == number) for number in range(3)))
    return Dataset(world, histories, split, world.best_guess(histories, split.test))


def by_hand(name: str, seed: int, *, d: int = D) -> np.ndarray:
    """Scores [len(test)] of the test rows by random unit vectors, nothing trained.

    ::

        sum, then compare    t . mean_j e_j = mean_j t . e_j       a user vector
        compare, then sum    mean_j exp(20 (t . e_j - 1))          target attention

    t and e_j are the vectors of the candidate's topic and of event j's. The two differ
    in what happens to a comparison before the sum, and in nothing else.
    """
    data = dataset(seed)
    world, rows = data.world, data.split.test
    vectors = np.random.default_rng(seed).normal(size=(TOPICS, d))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    says = BY_HAND[name](vectors @ vectors.T)  # [K, K]
    _, first, request = np.unique(world.log.request[rows], True, True)
    start, end = (
        edge[rows[first]] for edge in (data.histories.start, data.histories.end)
    )
    past = world.topic[data.histories.item]
    events = np.stack(
        [
            np.bincount(past[a:b], minlength=TOPICS) / max(b - a, 1)
            for a, b in zip(start, end, strict=True)
        ]
    )  # [requests, K]
    return (events @ says)[request, world.topic[world.log.item[rows]]]


def train(name: str, seed: int) -> tuple[DLRM, Fit, float]:
    """Trains ``MODELS[name]`` at each rate: the best on validation, and its rate.

    Raises:
        KeyError: there is no such model.
    """
    return min(
        (_train(MODELS[name], seed, rate) for rate in RATES),
        key=lambda run: run[1].epochs[run[1].best].validation.ne,
    )


def _train(model: Model, seed: int, rate: float) -> tuple[DLRM, Fit, float]:
    data = dataset(seed)
    log = data.world.log
    torch.manual_seed(seed)
    # Items of a topic are alike, and test users are new: their ids would be noise.
    features = log.users.without("user_id"), log.items.without("item_id")
    ranker = DLRM(Embeddings(*features, log.events, model.d), model.encoder(model.d))
    recipe = model.recipe(rate)
    return ranker, fit(ranker, log, data.histories, data.split, recipe, seed=seed), rate


def score(ranker: DLRM, seed: int) -> np.ndarray:
    """Scores [len(test)] of the test rows, by their whole histories."""
    data = dataset(seed)
    log, rows = data.world.log, data.split.test
    batching = partial(batches, batch_size=32, max_events=64)
    return score_rows(ranker, log, data.histories, rows, batching=batching)


def assess(
    guess: np.ndarray, seed: int, p: np.ndarray | None = None
) -> dict[int, dict[str, float]]:
    """Expected metrics of the test rows' scores, by their users' interests.

    Args:
        p: chance of each test row to be the taken one; that by the history unless
            given.
    """
    data = dataset(seed)
    log, rows = data.world.log, data.split.test
    p = data.p if p is None else p
    j = data.world.n_interests[log.user[rows]]
    found = {}
    for count in INTERESTS:
        of = j == count
        within = expected_choice(guess[of], p[of], log.request[rows[of]])
        found[count] = {
            name: round(getattr(within, name), 5)
            for name in ("auc", "ndcg", "mrr", "hit")
        }
    return found


def runs(names: Sequence[str] = (), done: Container[tuple] = ()) -> Iterator[dict]:
    """A row for each ceiling and model (all, if none is named), interests and seed.

    Args:
        done: keys of what is there already. One training gives the rows of all
            interests: if one of them is missing, all come again.

    Raises:
        KeyError: a model that there is not.
    """
    if unknown := set(names) - set(NAMES):
        raise KeyError(f"no model {sorted(unknown)}; there are {list(NAMES)}")
    todo = [
        (name, seed)
        for name in names or NAMES
        for seed in SEEDS
        if any((name, count, seed) not in done for count in INTERESTS)
    ]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_run, *job) for job in todo]):
            yield from future.result()


def _run(name: str, seed: int) -> list[dict]:
    torch.set_num_threads(1)
    data, training = dataset(seed), {}
    if name == KNOWN:
        p = data.world.chance(data.split.test)
        found = assess(p, seed, p)
    elif name in CEILINGS:
        known = CEILINGS[name]
        guess = data.world.best_guess(data.histories, data.split.test, known)
        found = assess(guess, seed)
    elif name in BY_HAND:
        found = assess(by_hand(name, seed), seed)
    else:
        ranker, fitted, rate = train(name, seed)
        found = assess(score(ranker, seed), seed)
        training = {
            "learning_rate": rate,
            "validation_ne": round(fitted.epochs[fitted.best].validation.ne, 5),
            "epochs": len(fitted.epochs),
            "seconds": round(fitted.seconds, 1),
        }
    return [
        {"model": name, "interests": count, "seed": seed, **metrics, **training}
        for count, metrics in found.items()
    ]
