"""Training: AdamW, early stopping on validation NE, same weights for same seeds."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recsys_edu import checkpoint as checkpoints
from recsys_edu.artefact import describe
from recsys_edu.batch import Impressions, batches, user_batches
from recsys_edu.data import Histories, InteractionLog, Split
from recsys_edu.dlrm import DLRM
from recsys_edu.metrics import Metrics, evaluate
from recsys_edu.progress import progress

Batching = Callable[..., Iterator[Impressions]]
"""(log, histories, rows, generator=...) -> batches: ``batches`` or ``user_batches``."""


STARTED = 0.99
"""Validation NE by which a model has begun to learn.

Vectors start small, and their dots near 0, so that a sparse log may show nothing for
some epochs. What has not started has not converged either, whatever its NE does.
"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained: all but the data and the seed.

    No field that decides what a model learns has a default: what suits a model without
    a history starves one that reads it. :data:`NAIVE` and :data:`HISTORY` are the
    book's two; ``dataclasses.replace`` changes one of them.

    Attributes:
        batching: how rows become batches, and how much history each gets:
            ``partial(batches, batch_size=..., max_events=...)`` for one row an
            impression, ``partial(user_batches, max_tokens=...)`` for amortized
            training.
        learning_rate: of AdamW.
        weight_decay: of AdamW; all weights decay alike, norms and biases too.
        averaging: what is validated and kept is an exponential moving average of the
            weights, a <- averaging a + (1 - averaging) w after each step; 0 for the
            weights themselves.
        cooling: the learning rate falls by the same amount after each epoch, to
            1 / max_epochs of it in the last, so that the last ones settle what the
            first ones found.
        max_epochs: epochs at most.
        patience: epochs without a better validation NE after which training ends, once
            it has started: before a validation NE of :data:`STARTED` or less, it waits.

    Raises:
        ValueError: a number out of its range.
    """

    batching: Batching
    learning_rate: float
    weight_decay: float
    averaging: float = 0.0
    cooling: bool = False
    max_epochs: int = 20
    patience: int = 2

    def __post_init__(self) -> None:
        for name, ok in (
            ("learning_rate", self.learning_rate >= 0),
            ("weight_decay", self.weight_decay >= 0),
            ("averaging", 0 <= self.averaging < 1),
            ("max_epochs", self.max_epochs >= 0),
            ("patience", self.patience >= 1),
        ):
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)}: it is out of range")

    def optimizer(self, model: nn.Module) -> torch.optim.AdamW:
        """AdamW over all parameters, its step one kernel call instead of many."""
        return torch.optim.AdamW(
            model.parameters(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            fused=True,
        )


NAIVE = Recipe(
    batching=partial(batches, batch_size=2048, max_events=0),
    learning_rate=2e-3,
    weight_decay=3.0,
)
"""For a model without an encoder: large batches of single rows, no history."""

HISTORY = Recipe(
    batching=partial(user_batches, max_events=50, max_candidates=32, max_tokens=2048),
    learning_rate=1e-3,
    weight_decay=0.1,
    averaging=0.995,
)
"""For a model with an encoder: a user's impressions share a pass, 50 events or more."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows."""

    train_loss: float  # mean log loss over the rows, in nats, as the weights moved
    validation: Metrics
    seconds: float  # training alone, without the validation pass


@dataclass(frozen=True)
class Fit:
    """What a training run did. The model holds the weights of epoch ``best``."""

    epochs: tuple[Epoch, ...]
    best: int  # index of the epoch with the lowest validation NE

    @property
    def seconds(self) -> float:
        """Training time of all epochs, validation left out."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def doubt(self) -> str | None:
        """Why to doubt that the model learned anything; None if it seems to have."""
        if not self.epochs:
            return None
        ne = self.epochs[self.best].validation.ne
        if ne >= 1:
            return (
                f"the best validation NE is {ne:.4f}: no better than always predicting "
                "the click rate"
            )
        if self.best == 0 and len(self.epochs) > 1:
            return (
                f"the first of {len(self.epochs)} epochs was the best, with a "
                f"validation NE of {ne:.4f}"
            )
        return None


def fit(
    model: nn.Module,
    log: InteractionLog,
    histories: Histories,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: str | Path | None = None,
) -> Fit:
    """Trains ``model`` in place on the log loss of ``split.train``.

    After each epoch the validation rows are scored; when their NE has not improved for
    ``recipe.patience`` epochs, training ends and the best epoch's weights come back.
    ``seed`` decides the order of the rows and the dropout; the caller seeds the initial
    weights. On one machine and thread count, the same seeds give the same weights.

    Args:
        model: takes a :class:`~recsys_edu.batch.Request`, returns logits [B, M].
        recipe: :data:`NAIVE`, :data:`HISTORY`, or another.
        checkpoint: a file that is written after each epoch. If it is there, training
            goes on from it, with the weights that are in it, to the same end as if it
            had never stopped. More ``patience`` than it was begun with is welcome, and
            more ``max_epochs`` where the learning rate does not cool over them.

    Warns:
        UserWarning: the best epoch is the first, or no better than the click rate, see
            :attr:`Fit.doubt`.

    Raises:
        ValueError: the rows of training or validation have one label only; the model
            reads histories, but the recipe gives it none; the checkpoint is of another
            model, recipe, seed, log or split.
        FloatingPointError: the loss or a validation score is no longer finite.

    Example:
        >>> from dataclasses import replace
        >>> from recsys_edu.data import split_by_time
        >>> from recsys_edu.data.synthetic import planted_world
        >>> from recsys_edu.embeddings import Embeddings
        >>> from recsys_edu.encoders.pooling import MeanPooling
        >>> log = planted_world(seed=0, n_impressions=20_000, n_items=20).log
        >>> histories, split = Histories.from_log(log), split_by_time(log)
        >>> users, _ = log.users.without("user_id"), torch.manual_seed(0)
        >>> ranker = DLRM(Embeddings(users, log.items, log.events, 8), MeanPooling())
        >>> recipe = replace(HISTORY, max_epochs=3, learning_rate=0.01, averaging=0.9)
        >>> fitted = fit(ranker, log, histories, split, recipe, seed=0)
        >>> fitted.doubt is None, fitted.epochs[fitted.best].validation.ne < 1
        (True, True)
    """
    _require_both_labels(log, split)
    _require_events(model, log, histories, split, recipe)
    course = _Course(model, recipe, seed)
    run = _run(model, log, histories, split, recipe, seed) if checkpoint else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if checkpoint and Path(checkpoint).exists():
            course.go_on(*checkpoints.load(checkpoint, run, _may_grow(recipe)))
        bar = progress(
            total=recipe.max_epochs,
            initial=len(course.epochs),
            unit=" epochs",
            leave=None,
        )
        with bar:
            while not course.done:
                metrics = course.epoch(log, histories, split)
                if checkpoint:
                    checkpoints.save(checkpoint, course.tensors(), course.facts(), run)
                bar.set_postfix_str(f"validation NE {metrics.ne:.4f}", refresh=False)
                bar.update()
    if course.best_weights is not None:
        model.load_state_dict(course.best_weights)
    model.eval()
    fitted = Fit(tuple(course.epochs), course.best)
    if fitted.doubt:
        warnings.warn(
            f"{fitted.doubt}. A sparse log may stand still for some epochs before it "
            f"learns: try more patience ({recipe.patience}) or epochs "
            f"({recipe.max_epochs}), or another learning rate, lower or higher "
            f"({recipe.learning_rate})",
            stacklevel=2,
        )
    return fitted


def train_epoch(
    model: nn.Module,
    batches: Iterable[Impressions],
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None = None,
) -> float:
    """One step a batch; the mean log loss over all rows, in nats, as the weights moved.

    No step reads a number back: losses stay on the device until the epoch is over.

    Args:
        average: a moving average of the weights, updated after each step.
    """
    device = next(model.parameters()).device
    model.train()
    losses, rows = [], []
    for batch in batches:
        batch = batch.to(device)
        loss = log_loss(model(batch.request), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if average is not None:
            average.update_parameters(model)
        losses.append(loss.detach())
        rows.append((batch.row >= 0).sum())
    count = torch.stack(rows).cpu().double()
    return (torch.stack(losses).cpu().double() @ count / count.sum()).item()


def log_loss(logits: Tensor, batch: Impressions) -> Tensor:
    """Mean log loss of logits [B, M] in nats, in float32 or better, padding left out.

    Padding is left out by a weight of 0: to index by a mask is to wait for the device,
    which knows how many rows are real.
    """
    real = batch.row >= 0
    logits = logits.where(real, 0)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = binary_cross_entropy_with_logits(
        logits, batch.label.to(logits), weight=real.to(logits), reduction="sum"
    )
    return total / real.sum()


@torch.inference_mode()
def score_rows(
    model: nn.Module,
    log: InteractionLog,
    histories: Histories,
    rows: np.ndarray,
    *,
    batching: Batching,
) -> np.ndarray:
    """Click probabilities [len(rows)] of rows of the log, in order.

    Amortized, as a ranker serves: a history is read once for all candidates of a batch
    row, and where there are at least as many rows as items, a :class:`DLRM` goes
    through the catalogue once and looks its items up. Puts ``model`` into eval mode and
    leaves it there.

    Args:
        batching: as in :class:`Recipe`; it decides how much history the model reads.
    """
    device = next(model.parameters()).device
    model.eval()
    probability = np.zeros(len(log), np.float32)
    catalogue = None
    whole = getattr(type(model), "forward", None) is DLRM.forward
    if whole and len(rows) >= log.n_items:
        catalogue = model.encode_items(torch.arange(log.n_items, device=device))
    for batch in batching(log, histories, rows):
        request = batch.request.to(device)
        if catalogue is None:
            logits = model(request)
        else:
            items = catalogue[request.candidates]
            logits = model.fuse(items, model.encode_request(request))
        scores = torch.sigmoid(logits).float().cpu()
        real = batch.row >= 0
        probability[batch.row[real].numpy()] = scores[real].numpy()
    return probability[rows]


class _Course:
    """A training run between two epochs: all that the next one depends on."""

    def __init__(self, model: nn.Module, recipe: Recipe, seed: int) -> None:
        self.model, self.recipe = model, recipe
        self.device = next(model.parameters()).device
        self.optimizer = recipe.optimizer(model)
        self.average = None
        if recipe.averaging:
            average = get_ema_multi_avg_fn(recipe.averaging)
            self.average = AveragedModel(model, multi_avg_fn=average)
        self.generator = np.random.default_rng(seed)
        self.epochs: list[Epoch] = []
        self.best = 0
        self.best_weights: dict[str, Tensor] | None = None

    @property
    def done(self) -> bool:
        """Whether there is no epoch left, or no patience."""
        waited = len(self.epochs) - 1 - self.best
        if not self.epochs or self.epochs[self.best].validation.ne > STARTED:
            waited = 0
        recipe = self.recipe
        return len(self.epochs) >= recipe.max_epochs or waited >= recipe.patience

    def epoch(self, log: InteractionLog, histories: Histories, split: Split) -> Metrics:
        """Trains for one epoch and judges it."""
        begin = time.perf_counter()
        if self.recipe.cooling:
            left = 1 - len(self.epochs) / self.recipe.max_epochs
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * left
        order = self.recipe.batching(
            log, histories, split.train, generator=self.generator
        )
        loss = train_epoch(self.model, order, self.optimizer, self.average)
        seconds = time.perf_counter() - begin
        judged = self.average.module if self.average else self.model
        scores = score_rows(
            judged, log, histories, split.validation, batching=self.recipe.batching
        )
        if not np.isfinite([loss, scores.sum()]).all():
            raise FloatingPointError(
                f"epoch {len(self.epochs) + 1} left a loss or a score that is not "
                f"finite; try a learning rate below {self.recipe.learning_rate}"
            )
        metrics = evaluate(log.label[split.validation], scores)
        self.epochs.append(Epoch(loss, metrics, seconds))
        if (
            self.best_weights is None
            or metrics.ne < self.epochs[self.best].validation.ne
        ):
            self.best = len(self.epochs) - 1
            self.best_weights = copy.deepcopy(judged.state_dict())
        return metrics

    def tensors(self) -> dict[str, Tensor]:
        """Weights, their average, the best ones, AdamW's moments, random states."""
        trees = {"weights": self.model.state_dict(), "best": self.best_weights}
        if self.average:
            trees["average"] = self.average.state_dict()
        names = [name for name, _ in self.model.named_parameters()]
        for number, moments in self.optimizer.state_dict()["state"].items():
            trees[f"optimizer.{names[number]}"] = moments
        trees["random"] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            trees["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            f"{k}.{name}": t for k, tree in trees.items() for name, t in tree.items()
        }

    def facts(self) -> dict:
        """The epochs so far, and where the order of the rows goes on."""
        return {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best": self.best,
            "generator": self.generator.bit_generator.state,
        }

    def go_on(self, tensors: dict[str, Tensor], facts: dict) -> None:
        """Takes up what :meth:`tensors` and :meth:`facts` gave."""

        def tree(name: str) -> dict[str, Tensor]:
            start = f"{name}."
            kept = {k: t for k, t in tensors.items() if k.startswith(start)}
            return {k.removeprefix(start): t for k, t in kept.items()}

        self.model.load_state_dict(tree("weights"))
        if self.average:
            self.average.load_state_dict(tree("average"))
        names = [name for name, _ in self.model.named_parameters()]
        state = self.optimizer.state_dict()
        state["state"] = {
            number: moments
            for number, name in enumerate(names)
            if (moments := tree(f"optimizer.{name}"))
        }
        self.optimizer.load_state_dict(state)
        random = tree("random")
        torch.set_rng_state(random["cpu"])
        if self.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], self.device)
        self.generator.bit_generator.state = facts["generator"]
        self.epochs = [
            Epoch(**{**epoch, "validation": Metrics(**epoch["validation"])})
            for epoch in facts["epochs"]
        ]
        self.best, self.best_weights = facts["best"], tree("best")


def _may_grow(recipe: Recipe) -> tuple[str, ...]:
    """What only says when to end: where a rate cools, not the number of epochs."""
    return ("patience",) if recipe.cooling else ("max_epochs", "patience")


def _run(
    model: nn.Module,
    log: InteractionLog,
    histories: Histories,
    split: Split,
    recipe: Recipe,
    seed: int,
) -> dict:
    """What tells this run from others, as JSON knows it."""
    columns = (log.user, log.item, log.timestamp, log.label, log.action)
    sides = [(side.dense, *side.sparse.values()) for side in (log.users, log.items)]
    past = [getattr(histories, field.name) for field in fields(histories)]
    return {
        "seed": seed,
        **{
            f.name: checkpoints.described(getattr(recipe, f.name))
            for f in fields(recipe)
        },
        "model": {
            "class": type(model).__qualname__,
            **(describe(model) if isinstance(model, DLRM) else {}),
            "weights": {k: list(w.shape) for k, w in model.named_parameters()},
        },
        "log": {
            "name": log.name,
            "rows": len(log),
            "contents": checkpoints.fingerprint(*columns, *sides[0], *sides[1]),
            "histories": checkpoints.fingerprint(*past),
        },
        "split": {
            part: {"rows": len(rows), "contents": checkpoints.fingerprint(rows)}
            for part in ("train", "validation")
            if (rows := getattr(split, part)) is not None
        },
    }


def _require_both_labels(log: InteractionLog, split: Split) -> None:
    for part in ("train", "validation"):
        labels = log.label[getattr(split, part)]
        if len(np.unique(labels)) < 2:
            found = f"all of label {labels[0]:.0f}" if len(labels) else "none at all"
            raise ValueError(
                f"log {log.name!r}: the {len(labels):,} rows of split.{part} are "
                f"{found}; a ranker learns from clicked and unclicked rows. Split "
                "elsewhere, or look at how labels were made"
            )


def _require_events(
    model: nn.Module,
    log: InteractionLog,
    histories: Histories,
    split: Split,
    recipe: Recipe,
) -> None:
    """Of the training row with the most events, a batch must hold at least one."""
    lengths = histories.lengths(split.train)
    if getattr(model, "encoder", None) is None or not lengths.any():
        return
    longest = split.train[[lengths.argmax()]]
    batch = next(iter(recipe.batching(log, histories, longest)))
    if batch.request.history.item.shape[1] == 0:
        raise ValueError(
            f"{type(model.encoder).__name__} reads histories, but the recipe's "
            "batching gives it none: train with HISTORY, or with a batching whose "
            "max_events is not 0"
        )
