"""The exercises of chapter 01, each with what it expects and the cases it tries.

A model here is the chapter's own, with the three methods of three clocks:
``encode_items(item)``, ``encode_request(user)`` and ``fuse(items, request)``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from recsys_edu.check import claim, function, value
from recsys_edu.check.differences import mismatch
from recsys_edu.embeddings import pairwise_dots

DEAD = -10.0
"""A bias that no input of a started model outweighs."""


def exercise_1(attempt: Callable) -> bool:
    """Pairwise dots in a loop, in the order of ``pairwise_dots``."""
    generator = torch.Generator().manual_seed(0)
    cases = [(torch.randn(n, 2, generator=generator),) for n in (2, 3, 5)]
    return function(
        "Exercise 1", attempt, lambda vectors: pairwise_dots(vectors).tolist(), cases
    )


def exercise_2(attempt: object, s_u: int, s_t: int, d: int, budget: int) -> bool:
    """The widest H whose candidate clock keeps to the budget."""
    crossed = s_u * s_t

    def flops(h: int) -> int:
        return 2 * crossed * d + 2 * crossed * h + 2 * h

    widest = max((h for h in range(1, budget) if flops(h) <= budget), default=0)
    return value("Exercise 2", attempt, widest)


class Recorder:
    """A model that counts the users and items that it is asked to encode."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.users = self.items = 0

    def encode_items(self, item: Tensor) -> tuple[Tensor, Tensor]:
        self.items += item.numel()
        return self.model.encode_items(item)

    def encode_request(self, user: Tensor) -> tuple[Tensor, Tensor]:
        self.users += user.numel()
        return self.model.encode_request(user)

    def fuse(
        self, items: tuple[Tensor, Tensor], request: tuple[Tensor, Tensor]
    ) -> Tensor:
        return self.model.fuse(items, request)

    def __call__(self, user: Tensor, candidates: Tensor) -> Tensor:
        return self.fuse(self.encode_items(candidates), self.encode_request(user))


def exercise_3(attempt: Callable, model: nn.Module) -> bool:
    """Scores of rows, each distinct user and item encoded once."""
    name = "Exercise 3"
    generator = torch.Generator().manual_seed(0)
    user = torch.randint(5, (64,), generator=generator)
    item = torch.randint(9, (64,), generator=generator)
    recorder = Recorder(model)
    with torch.no_grad():
        got = attempt(recorder, user.clone(), item.clone())
        if got is None or got is ...:
            return claim(name, None, "")
        expected = model(user, item[:, None])[:, 0]
    wrong = mismatch(got, expected, 1e-4)
    if wrong is not None:
        return claim(
            name, False, f"the scores of the rows, in their order: {wrong.text}"
        )
    asked = recorder.users, recorder.items
    once = len(user.unique()), len(item.unique())
    return claim(
        name,
        asked == once,
        f"the scores are right; encoded {asked[0]} users and {asked[1]} items, where "
        f"the {len(user)} rows hold {once[0]} and {once[1]}",
    )


def exercise_4(
    attempt: Callable, model: nn.Module, known: np.ndarray, n_users: int
) -> bool:
    """Row 0 of the id's table for users that are not known, and for them alone."""

    def codes() -> np.ndarray:
        rows = model.embeddings.users.values(torch.arange(n_users))
        return rows.sparse["user_id"].numpy().copy()

    before = codes()
    if attempt(model) is None:
        return claim("Exercise 4", None, "")
    return value("Exercise 4", codes(), np.where(known, before, 0))


def broken(model: nn.Module) -> nn.Module:
    """A copy of a model, one of whose parameters starts where no model can learn."""
    model = copy.deepcopy(model)
    nn.init.constant_(model.first.bias, DEAD)
    return model


def exercise_5(attempt: Callable, model: nn.Module, user: Tensor, item: Tensor) -> bool:
    """Mends what ``broken`` broke: hidden units are on for some rows, off for others.

    ``attempt`` changes the model it is given, and returns it.
    """
    name = "Exercise 5"
    sick = broken(model)
    mended = attempt(copy.deepcopy(sick))
    if mended is None or mended is ...:
        return claim(name, None, "")
    before = dict(sick.named_parameters())
    for which, parameter in mended.named_parameters():
        if which != "first.bias" and not torch.equal(parameter, before[which]):
            return claim(name, False, f"{which} was well, and has changed")
    with torch.no_grad():
        on = _hidden(mended, user, item) > 0  # [B, H]
    varied = (on.any(0) & ~on.all(0)).float().mean().item()
    return claim(
        name,
        varied > 0.5,
        f"{varied:.0%} of the hidden units are on for some rows and off for others",
    )


def _hidden(model: nn.Module, user: Tensor, item: Tensor) -> Tensor:
    """What goes into the first ReLU, [B, H]."""
    found = []
    hook = model.rest[0].register_forward_pre_hook(
        lambda _, inputs: found.append(inputs[0])
    )
    model(user, item[:, None])
    hook.remove()
    return found[0].flatten(0, -2)
