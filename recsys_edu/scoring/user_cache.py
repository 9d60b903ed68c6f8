"""Histories that stay encoded between requests, and when they may.

A kept code belongs to one user, one history and one set of weights. Where the history
has only grown at its end, and the model leaves old events alone, the code is extended.
In every other case it is dropped and the history encoded again: this cache may be slow,
but never wrong.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from recsys_edu.batch import History, Request
from recsys_edu.cost import nbytes
from recsys_edu.dlrm import DLRM, RequestSide
from recsys_edu.encoders.base import CannotExtend, HistoryCode


def weights_version(model: nn.Module) -> str:
    """A hash of all parameters and buffers: the same weights, the same version."""
    return version_of(chain(model.named_parameters(), model.named_buffers()))


def version_of(named: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of tensors: of their names, types, shapes and every byte."""
    digest = hashlib.sha256()
    for name, tensor in named:
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()


def encode_request(
    model: DLRM, request: Request, cache: UserCache | None = None
) -> RequestSide:
    """Request clock: by the model, or by its cache if there is one.

    Raises:
        ValueError: the cache is of another model.
    """
    if cache is None:
        return model.encode_request(request)
    if cache.model is not model:
        raise ValueError("the cache holds histories that another model encoded")
    return cache.encode_request(request)


def extend(model: DLRM, code: HistoryCode, request: Request, known: int) -> HistoryCode:
    """Request clock: the code of the request's history, from that of its first events.

    Equals ``model.encode_request(request).code`` at the price of the new events.

    Args:
        code: of the first ``known`` events of the same history, by the same weights.
        request: of one user (B = 1), its history unpadded.

    Raises:
        CannotExtend: a new event would change what ``code`` holds; the message says
            which part of the model does that.
    """
    if model.encoder is None:
        raise CannotExtend("a ranker without an encoder keeps nothing of a history")
    if not model.embeddings.append_only:
        raise CannotExtend(
            f"{type(model.embeddings.positions).__name__} counts from the end of the "
            "history: a new event moves every older one. Encode all of it again"
        )
    new = model.events(request, since=known)
    return model.encoder.extend(code, new, model.embeddings.users(request.user))


@dataclass(frozen=True)
class _Entry:
    weights: str  # version
    history: History  # [1, N]: it is its own version
    code: HistoryCode


class UserCache:
    """History codes by user, the least recently used dropped beyond ``max_bytes``.

    The history's version is the history: an entry keeps the events it was made from
    (25 bytes each, against 8 l d for keys and values in float32), and serves a request
    whose events begin with exactly these. A late event, an edit, a deletion and a
    window that has slid all fail that test.

    The model is asked for its weights' version at every request; the hash is taken
    again only when PyTorch has seen a weight change. Writing through ``tensor.data``
    hides a change from PyTorch: call :meth:`clear` after doing that.

    Attributes:
        outcomes: how requests were served, by name: "hit", "extended", or why the
            history was encoded: "new user", "new weights", "another history",
            "cannot extend".
    """

    def __init__(self, model: DLRM, *, max_bytes: int) -> None:
        self.model, self.max_bytes = model, max_bytes
        self.outcomes: Counter[str] = Counter()
        self.bytes = 0
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._seen: list[tuple[int, int]] = []
        self._weights = ""

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Drops all entries, and the weights' version."""
        self._entries.clear()
        self.bytes, self._seen = 0, []

    @torch.no_grad()
    def encode_request(self, request: Request) -> RequestSide:
        """Request clock: as ``model.encode_request``, from the cache where it can be.

        What it returns is what it keeps: read it, do not write into it.

        Raises:
            ValueError: more than one user; a model in training mode, whose dropout
                would be kept; ``visible`` is given.
        """
        if len(request.user) != 1:
            raise ValueError(
                f"{len(request.user)} users: histories have lengths of their own, so a "
                "cache serves one at a time; loop over request[b : b + 1]"
            )
        if any(module.training for module in self.model.modules()):
            raise ValueError("dropout would be cached: call model.eval() first")
        if request.visible is not None:
            raise ValueError("a cache serves requests, where visible is None")
        # A copy: the entry must not follow what the caller does to the request.
        events = request.history.map(lambda t: t[request.history.mask].unsqueeze(0))
        request = replace(request, history=events)
        outcome, code = self._known(request)
        side = self.model.encode_request(request, code)
        self.outcomes[outcome] += 1
        self._keep(int(request.user), _Entry(self._weights, events, side.code))
        return side

    def _known(self, request: Request) -> tuple[str, HistoryCode | None]:
        """How the request is served, and the code of its history unless it is new."""
        entry = self._entries.get(int(request.user))
        self._see_weights()
        if entry is None:
            outcome = "new user"
        elif entry.weights != self._weights:
            outcome = "new weights"
        elif (known := _leading(entry.history, request.history)) is None:
            outcome = "another history"
        elif known == request.history.item.shape[1]:
            return "hit", entry.code
        else:
            try:
                return "extended", extend(self.model, entry.code, request, known)
            except CannotExtend:
                outcome = "cannot extend"
        return outcome, None

    def _keep(self, user: int, entry: _Entry) -> None:
        """Puts the entry in place of the user's last, then drops the oldest entries."""
        if user in self._entries:
            self.bytes -= nbytes(self._entries.pop(user))
        if nbytes(entry) > self.max_bytes:
            return  # it would drop everybody else and then itself
        self._entries[user] = entry
        self.bytes += nbytes(entry)
        while self.bytes > self.max_bytes:
            self.bytes -= nbytes(self._entries.popitem(last=False)[1])

    def _see_weights(self) -> None:
        """Takes the weights' version again if PyTorch has seen one change."""
        tensors = chain(self.model.parameters(), self.model.buffers())
        seen = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if seen != self._seen:
            self._seen, self._weights = seen, weights_version(self.model)


def _leading(old: History, new: History) -> int | None:
    """The number of old events if the new history begins with just them, else None."""
    n = old.item.shape[1]
    same = (
        torch.equal(getattr(old, name), getattr(new, name)[:, :n])
        for name in ("item", "action", "timestamp")
    )
    return n if all(same) else None
