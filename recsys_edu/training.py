"""Training: AdamW, early stopping on validation NE, same weights for same seeds."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from recsys_edu.batch import batches
from recsys_edu.data.interactions import Histories, InteractionLog, Split
from recsys_edu.metrics import Metrics, evaluate
from recsys_edu.progress import progress


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
    max_events: int = 0,
    max_epochs: int = 20,
    patience: int = 2,
    batch_size: int = 2048,
    learning_rate: float = 2e-3,
    weight_decay: float = 3.0,
) -> Fit:
    """Trains ``model`` in place on the log loss of ``split.train``.

    After each epoch the validation rows are scored; when their NE has not improved for
    ``patience`` epochs, training ends and the best epoch's weights come back. ``seed``
    decides the order of the rows and the dropout; the caller seeds the initial weights.
    On one machine and thread count, the same seeds give the same weights.

    Args:
        model: takes a :class:`~recsys_edu.batch.Request`, returns logits [B, M].
        max_events: the most recent events of history the model gets; 0 for none.

    Raises:
        FloatingPointError: the loss or a validation score is no longer finite.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, weight_decay=weight_decay
    )
    loss_of = nn.BCEWithLogitsLoss()
    generator = np.random.default_rng(seed)
    epochs: list[Epoch] = []
    best, best_weights = 0, None
    bar = progress(total=max_epochs, unit=" epochs", leave=None)
    with torch.random.fork_rng(), bar:
        torch.manual_seed(seed)
        for number in range(max_epochs):
            begin, total = time.perf_counter(), 0.0
            model.train()
            for batch in batches(
                log,
                histories,
                split.train,
                batch_size=batch_size,
                max_events=max_events,
                generator=generator,
            ):
                batch = batch.to(device)
                loss = loss_of(model(batch.request), batch.label)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch.label)
            seconds = time.perf_counter() - begin
            validation = score_rows(
                model, log, histories, split.validation, max_events=max_events
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
                best, best_weights = number, copy.deepcopy(model.state_dict())
            elif number - best >= patience:
                break
    if best_weights is not None:
        model.load_state_dict(best_weights)
    return Fit(tuple(epochs), best)


@torch.inference_mode()
def score_rows(
    model: nn.Module,
    log: InteractionLog,
    histories: Histories,
    rows: np.ndarray,
    *,
    max_events: int = 0,
    batch_size: int = 4096,
) -> np.ndarray:
    """Click probabilities [len(rows)] of rows of the log, in order.

    Puts ``model`` into eval mode and leaves it there.
    """
    device = next(model.parameters()).device
    model.eval()
    scores = [
        torch.sigmoid(model(batch.request.to(device)))[:, 0].float().cpu().numpy()
        for batch in batches(
            log, histories, rows, batch_size=batch_size, max_events=max_events
        )
    ]
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)


def save_checkpoint(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes the weights as safetensors; readers need no pickle.

    The file appears whole or not at all: it is written beside ``path`` and renamed.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    save_file(model.state_dict(), partial, dict(metadata or {}))
    partial.replace(path)


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Reads weights written by :func:`save_checkpoint` into ``model``.

    Raises:
        RuntimeError: the file's tensors are not this model's; the message lists them.
    """
    model.load_state_dict(load_file(path))
