"""The ranker: a DLRM whose every part sits on the clock it belongs to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from recsys_edu.batch import Request, hide
from recsys_edu.door import Unknown, request_of
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.base import Code, Events, HistoryEncoder
from recsys_edu.tree import TensorTree


class TopMLP(nn.Module):
    """An MLP from features to a logit whose first layer is split by clock.

    The first layer is linear, so it may be applied to parts of its input at different
    times and the results added::

        W [x_user; x_item; x_cross] + b
            = (W_user x_user + b)  +  W_item x_item  +  W_cross x_cross
               request clock          item clock        candidate clock

    Splitting changes nothing but rounding.

    Args:
        user, item, cross: widths of the three parts of the input.
        hidden: widths of the hidden layers; the first is H.
    """

    def __init__(self, user: int, item: int, cross: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.user = nn.Linear(user, hidden[0])
        self.item = nn.Linear(item, hidden[0], bias=False)
        self.cross = nn.Linear(cross, hidden[0], bias=False)
        self.rest = nn.Sequential()
        for width, following in pairwise([*hidden, 1]):
            self.rest.extend([nn.ReLU(), nn.Linear(width, following)])

    def forward(self, user_share: Tensor, item_share: Tensor, cross: Tensor) -> Tensor:
        """Candidate clock: kept shares [..., H] and cross [..., X] -> logits [...]."""
        return self.rest(user_share + item_share + self.cross(cross)).squeeze(-1)


@dataclass(frozen=True)
class ItemSide(TensorTree):
    """What the item clock keeps of items; ``side[index]`` looks items up."""

    vectors: Tensor  # [..., S_t, d]
    share: Tensor  # [..., H] of the top MLP's first layer
    code: Code  # the encoder's


@dataclass(frozen=True)
class RequestSide(TensorTree):
    """What the request clock keeps of B requests."""

    vectors: Tensor  # [B, S_u, d]
    share: Tensor  # [B, H] of the top MLP's first layer
    code: Code  # the encoder's


class DLRM(nn.Module):
    """A deep learning recommendation model (Naumov et al. 2019), split by clock.

    With u [S_u, d] the user's vectors, t [S_t, d] the item's and, if there is an
    encoder, h [d] what it makes of candidate and history, the model is::

        logit = top([dots(u), u_0;  dots(t), t_0;  u.t, u.h, t.h, h])
                     x_user         x_item         x_cross

    that is: all pairwise dots, the bottom MLPs' outputs u_0 and t_0, and h. A naive
    DLRM has no encoder and no h. ``forward`` composes the three methods, one a clock.

    Args:
        embeddings: the vectors of users, items and events.
        encoder: fuses candidates with the history; None for a naive DLRM.
        hidden: widths of the top MLP's hidden layers; the first is H.

    Example:
        >>> from recsys_edu.batch import random_request
        >>> from recsys_edu.data.synthetic import planted_world
        >>> from recsys_edu.encoders.hstu import HSTU
        >>> log = planted_world(seed=0, n_impressions=99, n_users=9, n_items=9).log
        >>> embeddings = Embeddings(log.users, log.items, log.events, 8)
        >>> ranker = DLRM(embeddings, HSTU(8)).eval()
        >>> request = random_request(log, n=5, m=3, seed=0)
        >>> known = ranker.encode_request(request)  # once, however many candidates
        >>> scores = ranker.fuse(ranker.encode_items(request.candidates), known)
        >>> torch.allclose(scores, ranker(request))
        True
    """

    def __init__(
        self,
        embeddings: Embeddings,
        encoder: HistoryEncoder | None = None,
        *,
        hidden: Sequence[int] = (64,),
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = encoder
        self.hidden = tuple(hidden)
        users, items, d = embeddings.users, embeddings.items, embeddings.d
        cross = users.n_vectors * items.n_vectors
        if encoder is not None:
            cross += users.n_vectors + items.n_vectors + d
        self.top = TopMLP(users.n_own, items.n_own, cross, hidden)

    def with_encoder(self, encoder: HistoryEncoder) -> DLRM:
        """This ranker around another encoder; all other weights are shared."""
        ranker = copy.copy(self)
        ranker._modules = {**self._modules, "encoder": encoder}
        return ranker

    def request(
        self,
        user: Any,
        candidates: Any,
        *,
        now: Any,
        items: Any = (),
        actions: Any = (),
        times: Any = (),
        unknown: Unknown = "raise",
    ) -> Request:
        """The door: requests in the source's own ids and times -> indices, checked.

        One user with a list of candidates is a batch of one; B users take B lists, of
        any lengths each.

        Args:
            user: an id, or B ids.
            candidates: M item ids, or B lists of them.
            now: when the candidates are shown, in seconds since 1970, or B times.
            items, actions, times: the history, oldest event first: what was acted on,
                what was done, as the log had it, and when, in seconds. Lists of N, or
                B lists; leave them out where there is no history.
            unknown: what to do with ids that are not known, see
                :data:`recsys_edu.door.Unknown`.

        Raises:
            KeyError: ids or actions that are not known, unless ``unknown`` allows them.
            ValueError: lengths that differ, ids or times of a wrong type, events not in
                order or not before now, times in another unit, more candidates masked
                than shown. Each names the row, and how to mend it.

        Example:
            >>> from recsys_edu.data.synthetic import planted_world
            >>> log = planted_world(seed=0, n_impressions=99, n_users=9, n_items=9).log
            >>> ranker = DLRM(Embeddings(log.users, log.items, log.events, 8))
            >>> request = ranker.request(3, [5, 7], now=1_000)
            >>> ranker(request).shape
            torch.Size([1, 2])
        """
        return request_of(
            self.embeddings,
            user,
            candidates,
            now=now,
            items=items,
            actions=actions,
            times=times,
            unknown=unknown,
        )

    def encode_items(self, item: Tensor, code: Code | None = None) -> ItemSide:
        """Item clock: item indices [...] -> vectors, share and the encoder's code.

        Args:
            code: the encoder's, if it is known.
        """
        vectors = self.embeddings.items(item)
        if code is None and self.encoder is not None:
            code = self.encoder.encode_items(vectors.sum(-2))
        share = self.top.item(self.embeddings.items.own(vectors))
        return ItemSide(vectors, share, code)

    def events(self, request: Request, since: int = 0) -> Events:
        """Request clock: B histories as an encoder reads them, from ``since`` on.

        Raises:
            ValueError: each candidate sees a prefix of its own, as in amortized
                training, of a history whose positions count from its end.
        """
        if request.visible is not None and not self.embeddings.append_only:
            raise ValueError(
                f"{type(self.embeddings.positions).__name__} counts from the end of a "
                "history, and each candidate sees another end: train it one impression "
                "a row"
            )
        history = request.history
        return Events(
            self.embeddings.events(history, since),
            history.mask[:, since:],
            request.visible,
            timestamp=history.timestamp[:, since:],
            now=request.timestamp,
        )

    def encode_request(self, request: Request, code: Code | None = None) -> RequestSide:
        """Request clock: users and histories; the candidates are not read.

        Args:
            code: the encoder's, of the same histories at any time, if it is known; the
                histories are then not read either.
        """
        vectors = self.embeddings.users(request.user)
        if self.encoder is not None and code is None:
            code = self.encoder.encode_history(self.events(request), vectors)
        elif self.encoder is not None:
            code = self.encoder.at(code, request.timestamp)
        share = self.top.user(self.embeddings.users.own(vectors))
        return RequestSide(vectors, share, code)

    def fuse(self, items: ItemSide, request: RequestSide) -> Tensor:
        """Candidate clock: M items for each of B requests -> logits [B, M].

        Item tensors are [B, M, ...], or [M, ...] where all requests share candidates.
        """
        u, t = request.vectors, items.vectors  # [B, S_u, d], [..., M, S_t, d]
        cross = torch.einsum("...mid,...jd->...mij", t, u).flatten(-2)
        if self.encoder is not None:
            h = self.encoder.fuse(items.code, request.code)  # [B, M, d]
            user_dots = torch.einsum("bmd,bjd->bmj", h, u)
            item_dots = torch.einsum("...md,...mid->...mi", h, t)
            cross = torch.cat([cross, user_dots, item_dots, h], dim=-1)
        return self.top(request.share.unsqueeze(1), items.share, cross)

    def forward(self, request: Request) -> Tensor:
        """Logits [B, M] of ``request.candidates``; their sigmoids are probabilities."""
        scores = self.fuse(
            self.encode_items(request.items), self.encode_request(request)
        )
        return hide(scores, request.shown)
