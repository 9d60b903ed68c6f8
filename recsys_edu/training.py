"""Training: AdamW, early stopping on validation NE, same weights for same seeds."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recsys_edu.batch import Impressions, batches
from recsys_edu.data.interactions import Histories, InteractionLog, Split
from recsys_edu.files import written_whole
from recsys_edu.metrics import Metrics, evaluate
from recsys_edu.progress import progress

Batching = Callable[..., Iterator[Impressions]]
"""(log, histories, rows, generator=...) -> batches: ``batches`` or ``user_batches``."""

BY_IMPRESSION: Batching = partial(batches, batch_size=2048, max_events=0)


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


def fit(
    model: nn.Module,
    log: InteractionLog,
    histories: Histories,
    split: Split,
    *,
    seed: int,
    batching: Batching = BY_IMPRESSION,
    max_epochs: int = 20,
    patience: int = 2,
    learning_rate: float = 2e-3,
    weight_decay: float = 3.0,
    averaging: float = 0.0,
) -> Fit:
    """Trains ``model`` in place on the log loss of ``split.train``.

    After each epoch the validation rows are scored; when their NE has not improved for
    ``patience`` epochs, training ends and the best epoch's weights come back. ``seed``
    decides the order of the rows and the dropout; the caller seeds the initial weights.
    On one machine and thread count, the same seeds give the same weights.

    Args:
        model: takes a :class:`~recsys_edu.batch.Request`, returns logits [B, M].
        batching: how rows become batches, and how much history each gets:
            ``partial(batches, batch_size=..., max_events=...)`` for one row an
            impression, ``partial(user_batches, max_tokens=...)`` for amortized
            training. The default gives no history.
        averaging: what is validated and kept is an exponential moving average of the
            weights, a <- averaging a + (1 - averaging) w after each step; 0 for the
            weights themselves.

    Raises:
        FloatingPointError: the loss or a validation score is no longer finite.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, weight_decay=weight_decay
    )
    judged, average = model, None
    if averaging:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(averaging))
        judged = average.module
    generator = np.random.default_rng(seed)
    epochs: list[Epoch] = []
    best, best_weights = 0, None
    bar = progress(total=max_epochs, unit=" epochs", leave=None)
    with torch.random.fork_rng(), bar:
        torch.manual_seed(seed)
        for number in range(max_epochs):
            begin, total = time.perf_counter(), 0.0
            model.train()
            for batch in batching(log, histories, split.train, generator=generator):
                batch = batch.to(device)
                loss = log_loss(model(batch.request), batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if average is not None:
                    average.update_parameters(model)
                total += loss.item() * int((batch.row >= 0).sum())
            seconds = time.perf_counter() - begin
            validation = score_rows(
                judged, log, histories, split.validation, batching=batching
            )
            if not np.isfinite([total, validation.sum()]).all():
                raise FloatingPointError(
                    f"epoch {number + 1} left a loss or a score that is not finite; "
                    f"try a learning rate below {learning_rate}"
                )
            metrics = evaluate(log.label[split.validation], validation)
            epochs.append(Epoch(total / len(split.train), metrics, seconds))
            bar.set_postfix_str(f"validation NE {metrics.ne:.4f}", refresh=False)
            bar.update()
            if best_weights is None or metrics.ne < epochs[best].validation.ne:
                best, best_weights = number, copy.deepcopy(judged.state_dict())
            elif number - best >= patience:
                break
    if best_weights is not None:
        model.load_state_dict(best_weights)
    model.eval()
    return Fit(tuple(epochs), best)


def log_loss(logits: Tensor, batch: Impressions) -> Tensor:
    """Mean log loss of logits [B, M] in nats; padding has no part in it."""
    real = batch.row >= 0
    return binary_cross_entropy_with_logits(logits[real], batch.label[real])


@torch.inference_mode()
def score_rows(
    model: nn.Module,
    log: InteractionLog,
    histories: Histories,
    rows: np.ndarray,
    *,
    batching: Batching = BY_IMPRESSION,
) -> np.ndarray:
    """Click probabilities [len(rows)] of rows of the log, in order.

    Puts ``model`` into eval mode and leaves it there.
    """
    device = next(model.parameters()).device
    model.eval()
    probability = np.zeros(len(log), np.float32)
    for batch in batching(log, histories, rows):
        scores = torch.sigmoid(model(batch.request.to(device))).float().cpu()
        real = batch.row >= 0
        probability[batch.row[real].numpy()] = scores[real].numpy()
    return probability[rows]


def save_checkpoint(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes the weights as safetensors; readers need no pickle.

    The file appears whole or not at all: it is written beside ``path`` and renamed.
    """
    with written_whole(path) as partial:
        save_file(model.state_dict(), partial, dict(metadata or {}))


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Reads weights written by :func:`save_checkpoint` into ``model``.

    Raises:
        RuntimeError: the file's tensors are not this model's; the message lists them.
    """
    model.load_state_dict(load_file(path))
