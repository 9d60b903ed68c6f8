"""Ranking quality of every encoder on MovieLens-100K, over seeds.

``python -m recsys_edu.experiments quality`` trains each of :data:`MODELS` with five seeds, as
many at a time as there are cores, one thread each. All are scored alike: each test
impression with the last 50 events before it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context

import numpy as np
import torch

from recsys_edu.batch import batches
from recsys_edu.data import Histories, InteractionLog, Split, movielens, split_by_time
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder, AppendSelfEncoder
from recsys_edu.encoders.base import HistoryEncoder
from recsys_edu.encoders.concat import ConcatEncoder
from recsys_edu.encoders.hstu import HSTU
from recsys_edu.encoders.lime import LimeMHA, LimeXOR
from recsys_edu.encoders.low_rank import LREA, TruncatedMHA
from recsys_edu.encoders.pooling import MeanPooling
from recsys_edu.encoders.target_attention import DIN
from recsys_edu.encoders.two_tower import TwoTower
from recsys_edu.metrics import evaluate
from recsys_edu.training import HISTORY, NAIVE, Fit, Recipe, fit, score_rows

D = 32  # width of every vector
N = 50  # events that a test impression sees
SEEDS = (0, 1, 2, 3, 4)
R = 16  # links of LIME, and rows of the baselines that keep as many
LENGTHS = (0, 1, 10, 50)  # test rows are also scored by the events before them

BY_IMPRESSION = replace(
    HISTORY, batching=partial(batches, batch_size=256, max_events=N)
)
SCORING = partial(batches, batch_size=1024, max_events=N)


@dataclass(frozen=True)
class Model:
    """How one row of the quality tables is made."""

    encoder: Callable[[], HistoryEncoder | None]
    recipe: Recipe
    left_out: tuple[str, ...] = ("user_id", "occupation")  # see chapter 01

    def train(self, seed: int) -> tuple[DLRM, Fit]:
        """Trains it until two epochs in a row are no better than the best."""
        log, histories, split = dataset()
        torch.manual_seed(seed)
        embeddings = Embeddings(
            log.users.without(*self.left_out), log.items, log.events, D
        )
        ranker = DLRM(embeddings, self.encoder())
        return ranker, fit(ranker, log, histories, split, self.recipe, seed=seed)


def _transformer(encoder: type[HistoryEncoder], **options: bool) -> Callable:
    return partial(encoder, D, layers=2, heads=2, dropout=0.0, **options)


def low_rank(
    encoder: type[HistoryEncoder], r: int = R, **options: int | str
) -> Callable[[], HistoryEncoder]:
    """Makes an encoder that keeps r rows of a history."""
    return partial(encoder, D, r=r, heads=2, dropout=0.0, **options)


_CROSS = _transformer(AppendEncoder, causal=True)

MODELS: dict[str, Model] = {
    "naive DLRM": Model(type(None), NAIVE),  # makes None, in any process
    "mean pooling": Model(MeanPooling, HISTORY),
    "mean pooling + user id": Model(MeanPooling, HISTORY, ("occupation",)),
    "DIN": Model(partial(DIN, D), BY_IMPRESSION),
    "two-tower": Model(_transformer(TwoTower), HISTORY),
    "concat": Model(_transformer(ConcatEncoder), BY_IMPRESSION),
    "append-self": Model(_transformer(AppendSelfEncoder), BY_IMPRESSION),
    "append-cross": Model(_transformer(AppendEncoder, causal=False), BY_IMPRESSION),
    "append-cross, causal": Model(_CROSS, BY_IMPRESSION),
    "append-causal, amortized": Model(
        _transformer(AppendEncoder, causal=True, reads_itself=True), HISTORY
    ),
    "append-cross, causal, amortized": Model(_CROSS, HISTORY),
    "HSTU": Model(_transformer(HSTU), HISTORY),
    "LIME-MHA": Model(low_rank(LimeMHA), HISTORY),
    # Of three blocks, as in the paper, a prefix of the history has no links of its own.
    "LIME-XOR": Model(low_rank(LimeXOR, layers=2), HISTORY),
    "truncated MHA": Model(low_rank(TruncatedMHA), HISTORY),
    "LREA": Model(low_rank(LREA), HISTORY),
}


@cache
def dataset() -> tuple[InteractionLog, Histories, Split]:
    """MovieLens-100K, its histories, and the split by time."""
    log = movielens.load_100k()
    return log, Histories.from_log(log), split_by_time(log)


def train(name: str, seed: int) -> tuple[DLRM, Fit]:
    """Trains ``MODELS[name]``, see :meth:`Model.train`.

    Raises:
        KeyError: there is no such model.
    """
    return MODELS[name].train(seed)


def assess(ranker: DLRM) -> dict[str, float]:
    """Test AUC and NE of a trained ranker, and its AUC by number of earlier events."""
    log, histories, split = dataset()
    label = log.label[split.test]
    p = score_rows(ranker, log, histories, split.test, batching=SCORING)
    metrics = evaluate(label, p)
    scores = {"auc": metrics.auc, "ne": metrics.ne}
    bins = np.searchsorted(LENGTHS, histories.lengths(split.test), side="right") - 1
    for k, least in enumerate(LENGTHS):
        scores[f"auc_{least}"] = evaluate(label[bins == k], p[bins == k]).auc
    return scores


def runs(names: Sequence[str] = ()) -> Iterator[dict]:
    """One row for each of :data:`MODELS`, see :func:`sweep`."""
    return sweep(MODELS, names)


def sweep(models: Mapping[str, Model], names: Sequence[str] = ()) -> Iterator[dict]:
    """One row for each named model (all, if none is) and seed, as it is done.

    Raises:
        KeyError: a name that is not among the models.
    """
    if unknown := set(names) - set(models):
        raise KeyError(f"no model {sorted(unknown)}; there are {list(models)}")
    dataset()  # fetched once, here
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(_run, name, models[name], seed)
            for name in names or models
            for seed in SEEDS
        ]
        for future in as_completed(jobs):
            yield future.result()


def _run(name: str, model: Model, seed: int) -> dict:
    torch.set_num_threads(1)
    ranker, fitted = model.train(seed)
    impressions = len(dataset()[2].train) * len(fitted.epochs)
    return {
        "model": name,
        "seed": seed,
        **{key: round(value, 5) for key, value in assess(ranker).items()},
        "validation_ne": round(fitted.epochs[fitted.best].validation.ne, 5),
        "epochs": len(fitted.epochs),
        "seconds": round(fitted.seconds, 1),
        "impressions_per_second": round(impressions / fitted.seconds),
    }
