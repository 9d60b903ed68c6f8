"""Ranking quality of every encoder, on two tasks and two logs, over seeds.

Judged within the request: how the rows of one request are ordered, see
:mod:`recsys_edu.metrics`. Each of :data:`MODELS` is trained on a task of a log at each
learning rate of :data:`RATES` with seed 0, and at the one of the lowest validation NE
with the other seeds. Both are recorded: the search is a part of the result. As many
runs at a time as there are cores, one thread each. Takes twelve hours on two cores,
most of them for the fusions that read the history anew for each candidate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from scipy.special import expit, logit

from recsys_edu.batch import batches, user_batches
from recsys_edu.data import Histories, InteractionLog, movielens
from recsys_edu.data.tasks import Task, next_item, rating
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder, AppendSelfEncoder
from recsys_edu.encoders.base import HistoryEncoder
from recsys_edu.encoders.concat import ConcatEncoder, WideConcat
from recsys_edu.encoders.hstu import HSTU
from recsys_edu.encoders.lime import LimeMHA, LimeXOR
from recsys_edu.encoders.lime_sum import LimeSum
from recsys_edu.encoders.low_rank import LREA, TruncatedMHA
from recsys_edu.encoders.pooling import LengthOnly, MeanPooling
from recsys_edu.encoders.stca import STCA
from recsys_edu.encoders.target_attention import DIN
from recsys_edu.encoders.two_tower import TwoTower
from recsys_edu.experiments import record
from recsys_edu.metrics import Interval, difference, evaluate
from recsys_edu.positions import Recency, TimeGap
from recsys_edu.ranking import by_request, paired_bootstrap
from recsys_edu.training import HISTORY, NAIVE, Batching, Fit, Recipe, fit, score_rows

NONE: Mapping[tuple, dict] = MappingProxyType({})
KEY = ("log", "task", "model", "rate", "seed")
D = 32  # width of every vector
N = 50  # events that a test request sees
SEEDS = (0, 1, 2, 3, 4)
RATES = (1e-3, 3e-3)  # learning rates that are tried with seed 0
R = 16  # links of LIME, and rows of the baselines that keep as many
LENGTHS = (0, 1, 10, 50)  # test requests are also judged by the events before them

LOGS: dict[str, Callable[[], InteractionLog]] = {
    "100K": movielens.load_100k,
    "latest-small": movielens.load_latest_small,
}
TASKS: dict[str, Callable[[InteractionLog], Task]] = {
    "next item": next_item,
    "rating": rating,
}

AMORTIZED: dict[str, Batching] = {
    "next item": partial(
        user_batches, max_events=N, max_candidates=160, max_tokens=2048
    ),
    "rating": partial(user_batches, max_events=N, max_candidates=32, max_tokens=2048),
}
"""Runs of 32 requests share a history."""

BY_REQUEST: dict[str, Batching] = {
    "next item": partial(batches, batch_size=64, max_events=N),
    "rating": partial(batches, batch_size=256, max_events=N),
}
"""Each request has its own."""

ALONE: dict[str, Batching] = {
    "next item": partial(batches, batch_size=2560, max_events=0),
    "rating": NAIVE.batching,
}
"""No history."""

SCORING: dict[str, Batching] = {
    "next item": partial(batches, batch_size=8, max_events=N),
    "rating": partial(batches, batch_size=512, max_events=N),
}
"""Some 800 rows a batch: more of concat's M N tokens would fall out of the cache."""


@cache
def task(log: str = "100K", name: str = "next item") -> Task:
    """A task of a log, by their names in :data:`LOGS` and :data:`TASKS`."""
    return TASKS[name](LOGS[log]())


@dataclass(frozen=True)
class Model:
    """How one row of the quality tables is made.

    Attributes:
        encoder: makes the encoder.
        batching: how it is trained on each task.
        base: what else its recipe holds.
        positions: says when an event happened, besides its order.
        left_out: user features that it does not get, see chapter 01.
        past_rate: adds the user's past rate of success to the logit, which knows no
            item, see :func:`past_rate`.
        events: the most of a history that it sees, in training and after it.
    """

    encoder: Callable[[], HistoryEncoder | None]
    batching: Mapping[str, Batching]
    base: Recipe = HISTORY
    positions: Callable | None = None
    left_out: tuple[str, ...] = ("user_id", "occupation")
    past_rate: bool = False
    events: int = N

    def recipe(self, name: str, rate: float) -> Recipe:
        """How it is trained on a task at a learning rate."""
        return replace(
            self.base,
            batching=partial(self.batching[name], max_events=self.events),
            learning_rate=rate,
            cooling=True,
            max_epochs=8,
        )

    def train(self, task: Task, rate: float, seed: int) -> tuple[DLRM, Fit]:
        """Trains it until two epochs in a row are no better than the best."""
        log = task.log
        torch.manual_seed(seed)
        positions = self.positions(D) if self.positions else None
        there = [name for name in self.left_out if name in log.users.sparse]
        embeddings = Embeddings(
            log.users.without(*there), log.items, log.events, D, positions=positions
        )
        ranker = DLRM(embeddings, self.encoder())
        recipe = self.recipe(task.name, rate)
        data = log, task.histories, task.split
        return ranker, fit(ranker, *data, recipe, seed=seed)


def transformer(encoder: type[HistoryEncoder], **options: object) -> Callable:
    """Makes an encoder of two layers with two heads."""
    return partial(encoder, D, layers=2, heads=2, dropout=0.0, **options)


def low_rank(
    encoder: type[HistoryEncoder], r: int = R, **options: object
) -> Callable[[], HistoryEncoder]:
    """Makes an encoder that keeps r rows of a history."""
    return partial(encoder, D, r=r, heads=2, dropout=0.0, **options)


NOTHING = type(None)  # makes None, in any process
CROSS = transformer(AppendEncoder, causal=True)
BIDIRECTIONAL = transformer(AppendEncoder, causal=False)
SELF = transformer(AppendSelfEncoder)
CONCAT = transformer(ConcatEncoder)
RECENCY = partial(Recency, N)

MODELS: dict[str, Model] = {
    "naive DLRM": Model(NOTHING, ALONE, NAIVE, events=0),
    "naive DLRM + past rate": Model(NOTHING, ALONE, NAIVE, past_rate=True, events=0),
    "history length": Model(partial(LengthOnly, D), AMORTIZED),
    "mean pooling": Model(MeanPooling, AMORTIZED),
    "DIN": Model(partial(DIN, D), BY_REQUEST),
    "two-tower": Model(transformer(TwoTower), AMORTIZED),
    "append-cross, causal": Model(CROSS, AMORTIZED),
    "append-cross, causal + time gaps": Model(CROSS, AMORTIZED, positions=TimeGap),
    "append-cross, causal, by request": Model(CROSS, BY_REQUEST),
    "append-causal": Model(
        transformer(AppendEncoder, causal=True, reads_itself=True), AMORTIZED
    ),
    "STCA": Model(transformer(STCA), AMORTIZED),
    "STCA + time gaps": Model(transformer(STCA), AMORTIZED, positions=TimeGap),
    "HSTU": Model(transformer(HSTU), AMORTIZED),
    "LIME-MHA": Model(low_rank(LimeMHA), AMORTIZED),
    "LIME-MHA + time gaps": Model(low_rank(LimeMHA), AMORTIZED, positions=TimeGap),
    "LIME-sum": Model(low_rank(LimeSum), AMORTIZED),
    # Of three blocks, as in the paper, a prefix of the history has no links of its own.
    "LIME-XOR": Model(low_rank(LimeXOR, layers=2), AMORTIZED),
    "truncated MHA": Model(low_rank(TruncatedMHA), AMORTIZED),
    "LREA": Model(low_rank(LREA), AMORTIZED),
    "append-cross": Model(BIDIRECTIONAL, BY_REQUEST),
    "append-cross + recency": Model(BIDIRECTIONAL, BY_REQUEST, positions=RECENCY),
    "append-self": Model(SELF, BY_REQUEST),
    "append-self + recency": Model(SELF, BY_REQUEST, positions=RECENCY),
    "concat": Model(CONCAT, BY_REQUEST),
    "concat + recency": Model(CONCAT, BY_REQUEST, positions=RECENCY),
    "concat, 2d wide": Model(transformer(WideConcat), BY_REQUEST),
}


def train(
    name: str, seed: int, *, log: str = "100K", task_name: str = "next item"
) -> tuple[DLRM, Fit]:
    """Trains ``MODELS[name]`` at the learning rate that was chosen for it.

    Raises:
        KeyError: there is no such model, or it has not been recorded on this task.
    """
    rate = chosen(record.load("quality").runs, log, task_name, name)
    return MODELS[name].train(task(log, task_name), rate, seed)


def past_rate(
    log: InteractionLog, histories: Histories, rows: np.ndarray
) -> np.ndarray:
    """Each row's user's share of successes among earlier events, as log odds, [k].

    Less those of the log, which stand for ten events more. It knows no item: it lifts
    or lowers all rows of a second alike. Over a sitting it moves, as ratings come in.
    """
    order = np.lexsort((log.timestamp, log.user))
    order = order if log.event is None else order[log.event[order]]
    total = np.append(0, np.cumsum(log.label[order]))
    base = float(log.label.mean(dtype=np.float64))
    clicks = total[histories.end[rows]] - total[histories.start[rows]]
    rate = (clicks + 10 * base) / (histories.lengths(rows) + 10)
    return logit(rate) - logit(base)


def score(model: Model, ranker: DLRM, task: Task, rows: np.ndarray) -> np.ndarray:
    """Probabilities of rows of the task's log, by the last events before each.

    Where a test request has more items beside the taken one than a training request,
    success is rarer than the model has learnt. The difference of the log odds is known,
    and is added: it moves no row past another.
    """
    data = task.log, task.histories, rows
    batching = partial(SCORING[task.name], max_events=model.events)
    p = score_rows(ranker, *data, batching=batching).astype(np.float64)
    logits = logit(p.clip(1e-7, 1 - 1e-7))
    if task.name == "next item":
        label, split = task.log.label, task.split
        logits += logit(label[split.test].mean()) - logit(label[split.train].mean())
    if model.past_rate:
        logits += past_rate(*data)
    return expit(logits)


def assess(p: np.ndarray, task: Task) -> dict[str, float | list]:
    """What probabilities of the test rows are worth: within requests, pooled, by user.

    ``users`` holds each user's mean within-request AUC, and ``requests`` over how many
    requests, by ascending index of the user: what a bootstrap over users draws from.
    """
    log, rows = task.log, task.split.test
    label = log.label[rows]
    found = by_request(label, p, log.request[rows])
    pooled = evaluate(label, p)
    means = found.means()
    row = {"auc": means.auc, "auc_pairs": means.auc_pairs, "ndcg": means.ndcg}
    row |= {"mrr": means.mrr, "hit": means.hit}
    row |= {
        "pooled_auc": pooled.auc,
        "ne": pooled.ne,
        "calibration": pooled.calibration,
    }
    number, first = np.unique(log.request[rows], return_index=True)
    first = rows[first[np.searchsorted(number, found.request)]]  # [R]
    bins = np.searchsorted(LENGTHS, task.histories.lengths(first), side="right") - 1
    for k, least in enumerate(LENGTHS):
        some = found.auc[bins == k]
        row[f"auc_{least}"] = some.mean() if len(some) else np.nan
    row = {name: round(float(value), 5) for name, value in row.items()}
    by_user = pd.Series(found.auc).groupby(log.user[first])
    row["users"] = by_user.mean().round(4).tolist()
    row["requests"] = by_user.size().tolist()
    return row


def chosen(runs: pd.DataFrame, log: str, task: str, model: str) -> float:
    """The learning rate of the lowest validation NE among the runs of seed 0.

    Raises:
        KeyError: there is no such run.
    """
    best = at_chosen_rates(runs)
    wanted = (best.log == log) & (best.task == task) & (best.model == model)
    if not wanted.any():
        raise KeyError(f"{model!r} is not recorded on {task!r} of {log!r}")
    return float(best.rate[wanted].iloc[0])


def at_chosen_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of every model of every task and log at the rate chosen for it."""
    runs = runs.reset_index(drop=True)  # of several records, an index comes again
    first = runs[runs.seed == 0]
    best = first.loc[first.groupby(["log", "task", "model"]).validation_ne.idxmin()]
    return runs.merge(best[["log", "task", "model", "rate"]])


def gap(a: pd.DataFrame, b: pd.DataFrame) -> Interval:
    """Within-request AUC of a less that of b: two models' runs on one task of one log.

    Of the seeds that both have. The interval allows for other seeds (Welch) and for
    other users (bootstrap, the same users for both): half-widths add as squares.

    Raises:
        ValueError: they have fewer than two seeds in common.
    """
    a, b = a.set_index("seed"), b.set_index("seed")
    both = a.index.intersection(b.index)
    seeds = difference(a.auc[both], b.auc[both])
    weight = np.array(a.requests.iloc[0])  # how many requests a user has
    means = [np.stack(runs.users[both].tolist()) for runs in (a, b)]  # [seeds, users]
    users = paired_bootstrap(*means, np.arange(len(weight)), weight=weight)
    half = np.hypot(users.high - users.low, seeds.high - seeds.low) / 2
    mean = seeds.mean
    return Interval(mean, mean - half, mean + half, len(both))


def asked(row: Mapping, names: Sequence[str]) -> bool:
    """Whether names of logs, tasks and models, of each kind all if none, mean a row."""
    chosen = dict(zip(("log", "task", "model"), _chosen(names), strict=True))
    return all(row[column] in some for column, some in chosen.items())


def _chosen(names: Sequence[str]) -> list[list[str]]:
    kinds = [list(LOGS), list(TASKS), list(MODELS)]
    if unknown := set(names) - {name for kind in kinds for name in kind}:
        raise KeyError(f"no log, task or model {sorted(unknown)}; there are {kinds}")
    return [[name for name in kind if name in names] or kind for kind in kinds]


def runs(
    names: Sequence[str] = (), done: Mapping[tuple, dict] = NONE
) -> Iterator[dict]:
    """A row for each log, task, model, and learning rate or seed, as it is trained.

    Args:
        names: of logs, tasks and models; all of a kind, if none is named.
        done: key -> row, of runs that need not be made again.

    Raises:
        KeyError: a name that is of none of these.
    """
    logs, tasks, models = _chosen(names)
    for log in logs:
        for name in tasks:
            # A constant of the request is nothing to a task that judges within it.
            some = [m for m in models if name == "rating" or not MODELS[m].past_rate]
            yield from search({m: MODELS[m] for m in some}, log, name, done)


def search(
    models: Mapping[str, Model],
    log: str,
    name: str,
    done: Mapping[tuple, dict],
    *,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS,
) -> Iterator[dict]:
    """Rows of models on one task of one log: all rates with seed 0, then other seeds.

    Args:
        done: key -> row, of runs that need not be made again.
        rates: learning rates to choose from.
        seeds: 0, and those that are run at the rate that was chosen.
    """
    task(log, name)  # fetched once, here
    ne = {key: row["validation_ne"] for key, row in done.items()}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs: set[Future] = set()

        def submit(model: str, rate: float, seed: int) -> None:
            if (log, name, model, rate, seed) not in done:
                job = pool.submit(_run, models[model], log, name, model, rate, seed)
                jobs.add(job)

        def go_on(model: str) -> None:
            """The other seeds, once all rates of seed 0 are there."""
            tried = {rate: ne.get((log, name, model, rate, 0)) for rate in rates}
            if None not in tried.values():
                for seed in seeds[1:]:
                    submit(model, min(tried, key=tried.get), seed)

        for model in models:
            for rate in rates:
                submit(model, rate, 0)
            go_on(model)
        while jobs:
            finished, jobs_left = wait(jobs, return_when=FIRST_COMPLETED)
            jobs = set(jobs_left)
            for job in finished:
                row = job.result()
                ne[_key(row)] = row["validation_ne"]
                if row["seed"] == 0:
                    go_on(row["model"])
                yield row


def vary(
    models: Mapping[str, Model],
    base: Callable[[str], str],
    log: str,
    name: str,
    names: Sequence[str],
    done: Mapping[tuple, dict],
) -> Iterator[dict]:
    """Rows of variants of recorded models, each at the rate chosen for its base.

    Three seeds: those of the base's runs are what they are compared with.

    Args:
        base: a variant's name -> the name of the one of :data:`MODELS` that it varies.
        names: of variants; all, if none is named.
        done: key -> row, of runs that need not be made again.

    Raises:
        KeyError: a name that is not among the variants, or a base that is not recorded.
    """
    if unknown := set(names) - set(models):
        raise KeyError(f"no model {sorted(unknown)}; there are {list(models)}")
    by_rate: dict[float, dict[str, Model]] = {}
    recorded = record.load("quality").runs
    for variant in names or models:
        rate = chosen(recorded, log, name, base(variant))
        by_rate.setdefault(rate, {})[variant] = models[variant]
    for rate, some in by_rate.items():
        yield from search(some, log, name, done, rates=(rate,), seeds=SEEDS[:3])


def _key(row: Mapping) -> tuple:
    return tuple(row[column] for column in KEY)


def _run(model: Model, log: str, name: str, title: str, rate: float, seed: int) -> dict:
    torch.set_num_threads(1)
    given = task(log, name)
    ranker, fitted = model.train(given, rate, seed)
    p = score(model, ranker, given, given.split.test)
    rows = len(given.split.train) * len(fitted.epochs)
    return {
        "log": log,
        "task": name,
        "model": title,
        "rate": rate,
        "seed": seed,
        **assess(p, given),
        "validation_ne": round(fitted.epochs[fitted.best].validation.ne, 5),
        "epochs": len(fitted.epochs),
        "seconds": round(fitted.seconds, 1),
        "rows_per_second": round(rows / fitted.seconds),
    }
