"""Histories that stay encoded between requests, and when they may.

A kept code belongs to one user, one history and one set of weights. Where the history
has only grown at its end, and the model leaves old events alone, the code is extended.
In every other case it is dropped and the history encoded again: this cache may be slow,
but never wrong.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recsys_edu.batch import History, Request, at_the_end
from recsys_edu.cost import nbytes
from recsys_edu.dlrm import DLRM, RequestSide
from recsys_edu.encoders.base import CannotExtend, Code
from recsys_edu.scoring.versions import (
    Watch,
    require_eval,
    tensors_of,
    weights_version,
)
from recsys_edu.tree import stack

TRIES = 3
"""Encodings of one request before weights that move meanwhile are an error."""


def grow(model: DLRM, code: Code, request: Request, known: int) -> Code:
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
    """A code, and all that it was made of."""

    version: Hashable
    events: tuple[Tensor, ...]  # [N] items, actions and times: the history's version
    code: Code
    bytes: int


class UserCache:
    """History codes by user, the least recently used dropped beyond ``max_bytes``.

    ``cache.encode_request`` stands wherever ``model.encode_request`` does::

        amortized(cache.model, request, micro_batch=256, encode=cache.encode_request)

    **The history's version is the history**: an entry keeps the events it was made from
    (24 bytes each, against 8 l d for keys and values in float32), and serves a request
    whose events begin with exactly these. A late event, an edit, a deletion and a
    window that has slid all fail that test.

    **The weights' version** is read before a history is encoded and again after. If it
    moved, the request is encoded again: what is returned is of one version, and what is
    kept is tagged with it. Unless ``version`` gives it, it is a hash of all weights,
    taken again only when PyTorch has seen one change, see
    :class:`~recsys_edu.scoring.versions.Seen`: after a change through ``tensor.data``
    call :meth:`clear`; of weights that were made under ``inference_mode`` PyTorch keeps
    no count, so they are hashed at every request. Feature rows that are overwritten
    count as well. A code serves the precision, autocast's included, and the device that
    it was made in.

    **Threads** may share a cache: look-ups, evictions and the count of bytes are done
    under a lock, encoding outside of it. **To put other weights into service under
    traffic** make another model and another cache, and replace the one reference that
    requests read both from: those under way end with the old ones. Weights that are
    written to in place may be read half written, by anybody.

    Args:
        model: the ranker that encodes, in eval mode.
        max_bytes: of all entries.
        version: returns the version of the weights, for a deployment that knows it: no
            weight is then hashed or looked at on the request path.

    Attributes:
        outcomes: how histories were served, by name: "hit", "extended", or why one was
            encoded: "new user", "new weights", "another history", "cannot extend".
        bytes: of all entries.

    Example:
        >>> from recsys_edu.data.synthetic import planted_world
        >>> from recsys_edu.embeddings import Embeddings
        >>> from recsys_edu.encoders.append import AppendEncoder
        >>> log = planted_world(seed=0, n_impressions=99, n_users=9, n_items=9).log
        >>> embeddings = Embeddings(log.users, log.items, log.events, 8)
        >>> model = DLRM(embeddings, AppendEncoder(8)).eval()
        >>> cache = UserCache(model, max_bytes=10**6)
        >>> for n in (1, 1, 2):  # events so far
        ...     seen = dict(items=[5, 7][:n], actions=[0, 1][:n], times=[10, 20][:n])
        ...     side = cache.encode_request(model.request(3, [4], now=60, **seen))
        >>> dict(cache.outcomes)
        {'new user': 1, 'hit': 1, 'extended': 1}
    """

    def __init__(
        self,
        model: DLRM,
        *,
        max_bytes: int,
        version: Callable[[], Hashable] | None = None,
    ) -> None:
        self.model, self.max_bytes = model, max_bytes
        self.outcomes: Counter[str] = Counter()
        self.bytes = 0
        self._given = version
        self._watch = Watch(lambda: weights_version(model))
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Drops all entries, and the weights' version."""
        with self._lock:
            self._entries.clear()
            self.bytes = 0
            self._watch.forget()

    def encode_request(self, request: Request) -> RequestSide:
        """Request clock: as ``model.encode_request``, from the cache where it can be.

        Each of B users is looked up alone; the B codes are stacked into one batch.
        What it returns for one is what it keeps: read it, do not write into it.

        Raises:
            ValueError: a model in training mode, whose dropout would be kept;
                ``visible`` is given.
            RuntimeError: the weights moved during each of three encodings.
        """
        if request.visible is not None:
            raise ValueError("a cache serves requests, where visible is None")
        # What is kept serves with gradients too, which inference tensors cannot.
        with torch.inference_mode(False), torch.no_grad():
            lengths = _lengths(request.history.mask)
            if lengths is None:
                request = replace(request, history=at_the_end(request.history))
                lengths = _lengths(request.history.mask)
            keys = [(user, *self._precision()) for user in request.user.tolist()]
            for _ in range(TRIES):
                version = self._version()
                served = [
                    self._serve(key, request, b, lengths[b], version)
                    for b, key in enumerate(keys)
                ]
                codes = [entry.code for _, entry in served]
                code = codes[0] if len(codes) == 1 else stack(codes)
                side = self.model.encode_request(request, code)
                hits = all(outcome == "hit" for outcome, _ in served)
                if hits or self._version() == version:
                    self._keep(keys, served)
                    return side
        raise RuntimeError(
            f"the weights changed during each of {TRIES} encodings of a request: to "
            "change them under traffic, make another model and another cache"
        )

    def _serve(
        self, key: Hashable, request: Request, b: int, n: int, version: Hashable
    ) -> tuple[str, _Entry]:
        """How the history of row b, n events long, is served, and its entry."""
        with self._lock:
            entry = self._entries.get(key)
        history = request.history
        if entry is None:
            outcome = "new user"
        elif entry.version != version:
            outcome = "new weights"
        elif not _begins(history, b, n, entry.events):
            outcome = "another history"
        elif len(entry.events[0]) == n:
            return "hit", entry
        else:
            outcome = "extended"
        require_eval(self.model)
        # A copy: the entry must not follow what the caller does to the request.
        events = torch.stack([column[b, :n] for column in _columns(history)])
        real = torch.ones_like(events[:1], dtype=torch.bool)
        row = Request(
            user=request.user[b : b + 1],
            timestamp=request.timestamp[b : b + 1].clone(),
            candidates=request.candidates[b : b + 1],
            history=History(*events.unsqueeze(1), real),
        )
        code = None
        if outcome == "extended":
            try:
                code = grow(self.model, entry.code, row, len(entry.events[0]))
            except CannotExtend:
                outcome = "cannot extend"
        if code is None:
            code = self.model.encode_request(row).code
        size = nbytes([events, code])
        return outcome, _Entry(version, tuple(events), code, size)

    def _keep(self, keys: list[Hashable], served: list[tuple[str, _Entry]]) -> None:
        """Puts entries in place of their users' last, then drops the oldest."""
        with self._lock:
            for key, (outcome, entry) in zip(keys, served, strict=True):
                self.outcomes[outcome] += 1
                if outcome == "hit":
                    if self._entries.get(key) is entry:  # not dropped meanwhile
                        self._entries.move_to_end(key)
                    continue
                if (last := self._entries.pop(key, None)) is not None:
                    self.bytes -= last.bytes
                if entry.bytes > self.max_bytes:
                    continue  # it would drop everybody else and then itself
                self._entries[key] = entry
                self.bytes += entry.bytes
                while self.bytes > self.max_bytes:
                    self.bytes -= self._entries.popitem(last=False)[1].bytes

    def _version(self) -> Hashable:
        """Of the weights, and of the feature rows that were overwritten."""
        if self._given is None:
            weights = self._watch(tensors_of(self.model))
        else:
            weights = self._given()
        embeddings = self.model.embeddings
        rows = (side.values for side in (embeddings.users, embeddings.items))
        return weights, *((weakref.ref(values), values.version) for values in rows)

    def _precision(self) -> tuple[Hashable, ...]:
        """What else a code depends on: types and device it was computed in."""
        weight = self.model.top.user.weight
        kind = weight.device.type
        autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        return weight.dtype, weight.device, autocast


def _columns(history: History) -> tuple[Tensor, Tensor, Tensor]:
    return history.item, history.action, history.timestamp


def _lengths(mask: Tensor) -> list[int] | None:
    """How many events each of B rows has; None if padding stands before one."""
    if mask.all():
        return [mask.shape[1]] * len(mask)
    lengths = mask.sum(1).tolist()
    at_end = all(mask[b, :n].all() for b, n in enumerate(lengths))
    return lengths if at_end else None


def _begins(history: History, b: int, n: int, events: tuple[Tensor, ...]) -> bool:
    """Whether the n events of row b begin with just these."""
    old = len(events[0])
    return old <= n and all(
        torch.equal(column[b, :old], known)
        for column, known in zip(_columns(history), events, strict=True)
    )
