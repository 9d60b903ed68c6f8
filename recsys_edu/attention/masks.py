"""Attention masks: each a rule, a dense tensor, a FlexAttention mask_mod, a picture.

A mask answers one question: may the query at position q read the key at position k?
Every mask of the book is written as that rule once, and all its other forms follow.
Sequences are laid out ``[H_0 .. H_{n-1}, C_0 .. C_{m-1}]``: n history tokens, then m
candidates, or links, that share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rule = Callable[[Tensor, Tensor], Tensor]
"""(query positions, key positions), broadcast against each other -> bool."""


@dataclass(frozen=True)
class Mask:
    """Which of n + m tokens may read which, for n of history and m that share it.

    Example:
        >>> append(3, 2, causal=True, reads_itself=False).dense().int()
        tensor([[1, 0, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 1, 0, 0]], dtype=torch.int32)
    """

    name: str
    n: int
    m: int
    rule: Rule

    @property
    def size(self) -> int:
        """Tokens in the sequence, n + m."""
        return self.n + self.m

    def dense(self, device: torch.device | str | None = None) -> Tensor:
        """The rule on all pairs: [n + m, n + m] bool, row q, column k."""
        position = torch.arange(self.size, device=device)
        allowed = self.rule(position[:, None], position[None, :])
        return allowed.expand(self.size, self.size)

    @property
    def mask_mod(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The rule as FlexAttention takes it: (batch, head, query, key) -> bool."""
        return lambda batch, head, q, k: self.rule(q, k)

    @property
    def pairs(self) -> int:
        """How many (query, key) pairs the rule allows: the products that are needed."""
        return int(self.dense().sum())

    def draw(self, axes: Axes) -> None:
        """Draws the mask: row reads column where it is dark, the history set apart."""
        axes.imshow(self.dense().cpu().numpy(), cmap="Blues", vmin=-0.2, vmax=1.4)
        axes.axhline(self.n - 0.5, color="#D55E00")
        axes.axvline(self.n - 0.5, color="#D55E00")
        axes.set(title=self.name, xlabel="reads", ylabel="token", xticks=[], yticks=[])
        axes.grid(False)


def append(n: int, m: int = 0, *, causal: bool, reads_itself: bool) -> Mask:
    """Append fusion whose history knows no candidate, for any number of candidates.

    History reads history, all of it or with ``causal`` its past and itself. A candidate
    reads all of the history and, with ``reads_itself``, its own key. No candidate reads
    another.

    ======  ============  ==================================================
    causal  reads_itself  what it is
    ======  ============  ==================================================
    False   False         append with cross-attention (Hertel et al. 2025)
    True    False         the same with a causal history
    True    True          append with causal self-attention; HSTU's mask
    ======  ============  ==================================================
    """

    def rule(q: Tensor, k: Tensor) -> Tensor:
        candidate = q >= n
        allowed = (k < n) & (candidate | (k <= q)) if causal else (k < n) & (q == q)
        return allowed | (candidate & (k == q)) if reads_itself else allowed

    history = "causal history" if causal else "bidirectional history"
    return Mask(f"append, {history}{', itself' * reads_itself}", n, m, rule)


def bidirectional(n: int, m: int = 0) -> Mask:
    """Every token reads every token: append with bidirectional self-attention.

    Raises:
        ValueError: more than one candidate. They would read each other, so a score
            would depend on what else is in the request.
    """
    if m > 1:
        raise ValueError(f"{m} candidates would read each other; score them one by one")
    return Mask(
        "append, every token reads every token", n, m, lambda q, k: (q == q) & (k == k)
    )


def xor(n: int, r: int) -> Mask:
    """LIME-XOR: n events and r links, each token reads the other kind alone.

    Two off-diagonal rectangles are allowed, 2 n r of (n + r)^2 pairs: no event reads an
    event, so nothing is quadratic in n. A token does not read itself either: the
    residual of its block carries it. Source: LIME (arXiv 2510.18239); what the paper's
    diagonal is has not been published.
    """
    return Mask("XOR, events and links", n, r, lambda q, k: (q < n) ^ (k < n))
