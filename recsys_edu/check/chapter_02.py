"""The exercises on reading histories: means, padding, leaks, DIN, what is kept.

Each takes what the reader wrote and tries it on cases of its own, all small and drawn
from fixed seeds, so that no answer stands beside the question.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from recsys_edu import check
from recsys_edu.batch import History, at_the_end
from recsys_edu.cost import nbytes
from recsys_edu.data import Histories
from recsys_edu.encoders.append import AppendEncoder
from recsys_edu.encoders.base import Events, HistoryEncoder
from recsys_edu.encoders.pooling import MeanPooling
from recsys_edu.encoders.target_attention import DIN

__all__ = ["bytes_kept", "count_leaks", "decayed_mean", "move_padding", "port_din"]

LENGTHS = torch.tensor([[5], [2], [0], [1]])  # of the four histories of a batch


def decayed_mean(attempt: Callable) -> bool:
    """``attempt(events [B, N, d], mask [B, N], half_life) -> [B, d]``."""
    draw = torch.Generator().manual_seed(0)
    events = torch.randn(4, 5, 3, generator=draw)
    wide = torch.cat([events, torch.full((4, 3, 3), 9.0)], dim=1)
    cases = [
        (x, torch.arange(x.shape[1]) < LENGTHS, half_life)
        for x, half_life in ((events, 1.0), (events, 2.5), (wide, 2.5))
    ]
    return check.function("Exercise 1", attempt, _decayed_mean, cases)


def _decayed_mean(events: Tensor, mask: Tensor, half_life: float) -> Tensor:
    mean = torch.zeros(len(events), events.shape[-1])
    for row, n in enumerate(mask.sum(1).tolist()):
        weight = [2 ** (-(n - 1 - j) / half_life) for j in range(n)]
        for w, event in zip(weight, events[row, :n], strict=True):
            mean[row] += w / sum(weight) * event
    return mean


def move_padding(attempt: Callable) -> bool:
    """``attempt(history) -> history`` with its padding at the end, events in order."""

    def seen(history: History, move: Callable) -> dict | None:
        moved = move(history)
        if moved is None or moved is ...:
            return None
        kept = moved.map(lambda tensor: tensor.where(moved.mask, -1))
        return {"mask": moved.mask} | {
            name: getattr(kept, name) for name in ("item", "action", "timestamp")
        }

    cases = [(_history(left),) for left in (True, False)]
    if attempt is None or attempt is ...:
        return check.value("Exercise 2", attempt, 0)
    return check.function(
        "Exercise 2",
        lambda history: seen(history, attempt),
        lambda history: seen(history, at_the_end),
        cases,
    )


def _history(left: bool) -> History:
    """Four histories of 5, 2, 0 and 1 events, padded on the left or wherever."""
    draw = torch.Generator().manual_seed(int(left))
    mask = torch.arange(6) < LENGTHS
    if left:
        mask = mask.flip(1)
    else:
        mask = mask.gather(1, torch.rand(4, 6, generator=draw).argsort(1))
    item = torch.randint(100, (4, 6), generator=draw)
    action = torch.randint(5, (4, 6), generator=draw)
    minute = torch.arange(6) // 2  # two events share each
    return History(item, action, (1000 + 60 * minute).expand(4, 6).clone(), mask)


def count_leaks(attempt: Callable) -> bool:
    """``attempt(past, now) -> int``, the requests that see an event of now or later."""
    second = np.array([10, 20, 30, 40, 40, 55, 60, 60])
    item = np.arange(8)
    start = np.array([0, 0, 0, 3, 3, 3, 6, 6])
    now = np.array([10, 25, 30, 35, 40, 56, 55, 70])
    ends = (
        [0, 2, 2, 3, 3, 6, 6, 8],  # strictly earlier; the first history is empty
        [0, 2, 3, 3, 5, 6, 6, 8],  # two of them reach into their own second
        [3, 3, 3, 6, 6, 6, 8, 8],  # all that the user ever does
    )
    cases = [(Histories(item, item % 5, second, start, np.array(e)), now) for e in ends]
    return check.function("Exercise 3", attempt, _count_leaks, cases)


def _count_leaks(past: Histories, now: np.ndarray) -> int:
    ranges = zip(past.start, past.end, now, strict=True)
    return sum(bool((past.timestamp[a:b] >= t).any()) for a, b, t in ranges)


class PublicDIN(nn.Module):
    """DIN for every pair, its four vectors in another order: [C; H; C - H; C * H]."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(4 * d, hidden)
        self.weight = nn.Linear(hidden, 1)

    def forward(self, events: Tensor, mask: Tensor, candidates: Tensor) -> Tensor:
        """Events [B, N, d], mask [B, N], candidates [B, M, d] -> [B, M, d]."""
        shape = (-1, candidates.shape[1], events.shape[1], -1)
        event = events[:, None].expand(shape)
        item = candidates[:, :, None].expand(shape)
        pairs = torch.cat([item, event, item - event, item * event], dim=-1)
        weight = self.weight(torch.relu(self.first(pairs))).squeeze(-1)
        weight = weight * mask[:, None]
        return weight @ events / mask.sum(1)[:, None, None].clamp(min=1)


def port_din(attempt: Callable) -> bool:
    """``attempt(PublicDIN) -> DIN`` of the same output."""

    def by_attempt(pair: PublicDIN, *data: Tensor) -> Tensor | None:
        ported = attempt(pair)
        if ported is None or ported is ...:
            return None
        # The chapter has a DIN of its own, the package's definition once more.
        parts = DIN(1, hidden=1).state_dict().keys()
        if (
            not isinstance(ported, HistoryEncoder)
            or ported.state_dict().keys() != parts
        ):
            raise TypeError(f"expected a DIN, got {type(ported).__name__}")
        events, mask, candidates = data
        return ported(Events(events, mask), None, candidates)

    cases = []
    for seed, (d, hidden) in enumerate([(4, 6), (6, 3)]):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            data = torch.randn(4, 5, d), torch.arange(5) < LENGTHS, torch.randn(4, 3, d)
            cases.append((PublicDIN(d, hidden), *data))
    if attempt is None or attempt is ...:
        return check.value("Exercise 4", attempt, 0)
    return check.function(
        "Exercise 4", by_attempt, lambda pair, *data: pair(*data), cases
    )


def bytes_kept(attempt: Callable) -> bool:
    """``attempt(n, d, a, l) -> {"pooling", "DIN", "Transformer": bytes}``."""
    cases = [(256, 32, 32, 2), (10, 16, 24, 3), (0, 8, 4, 1)]
    return check.function("Exercise 5", attempt, _bytes_kept, cases)


@torch.no_grad()
def _bytes_kept(n: int, d: int, a: int, layers: int) -> dict[str, int]:
    encoders = {
        "pooling": MeanPooling(),
        "DIN": DIN(d, hidden=a),
        "Transformer": AppendEncoder(d, layers=layers, heads=2, dropout=0.0),
    }
    events = Events(torch.zeros(1, n, d), torch.ones(1, n, dtype=torch.bool))
    kept = {}
    for name, encoder in encoders.items():
        code = encoder.encode_history(events, None)
        parts = [code] if isinstance(code, Tensor) else vars(code).values()
        kept[name] = nbytes([part for part in parts if part.is_floating_point()])
    return kept
