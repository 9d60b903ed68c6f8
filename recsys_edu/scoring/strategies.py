"""Scoring strategies: the same scores, with the history read M times, or once.

Each is a function of a ranker and a request, [B] users with M candidates each, and
returns logits [B, M]. Where two are defined for a model they agree to rounding.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from recsys_edu.batch import Request
from recsys_edu.dlrm import DLRM
from recsys_edu.encoders.single_pass import OneSequence, SinglePassEncoder
from recsys_edu.scoring.link_index import LinkIndex
from recsys_edu.scoring.user_cache import UserCache


def naive(model: DLRM, request: Request) -> Tensor:
    """One full pass for every candidate: the history is read M times. The oracle.

    Cost: M x (request clock + candidate clock).
    """
    scores = [
        model(replace(request, candidates=candidate))
        for candidate in request.candidates.split(1, dim=1)
    ]
    return torch.cat(scores, dim=1)


def amortized(
    model: DLRM, request: Request, *, micro_batch: int, cache: UserCache | None = None
) -> Tensor:
    """M-FALCON: the history once, then candidates in micro-batches that read its code.

    Cost: request clock + M x candidate clock. The micro-batch bounds the memory that
    candidates take at a time. With a cache, the request clock pays for events that are
    new since the user's last request. Source: Zhai et al. 2024, section 3.4.

    Raises:
        ValueError: ``micro_batch`` is less than 1; the cache is of another model.
    """
    known = encode_request(model, request, cache)  # request clock, once
    scores = [
        model.fuse(model.encode_items(candidates), known)
        for candidates in micro_batches(request, micro_batch)
    ]
    return torch.cat(scores, dim=1)


def single_pass(model: DLRM, request: Request) -> Tensor:
    """One masked sequence [history; M candidates] through the encoder.

    Raises:
        TypeError: the encoder is not a ``OneSequence``; no mask makes one sequence
            of it without candidates reading each other.
    """
    if not isinstance(model.encoder, OneSequence):
        raise TypeError(
            f"{type(model.encoder).__name__} has no single-pass form: "
            "score it with naive() or amortized()"
        )
    return model.with_encoder(SinglePassEncoder(model.encoder))(request)


def links(
    model: DLRM,
    request: Request,
    index: LinkIndex,
    *,
    micro_batch: int,
    cache: UserCache | None = None,
) -> Tensor:
    """LIME with its item clock behind it: a candidate's link weights are looked up.

    What is left to a candidate is a look-up of r numbers and of its embeddings, a
    weighted sum of r links, the interaction and the top MLP: O(r d), whatever N.

    Cost: request clock + M x candidate clock, as :func:`amortized`, of a smaller one.

    Raises:
        KeyError: candidates are not in the index; the message names the first few.
        ValueError: ``micro_batch`` is less than 1; the index or the cache was made by
            another model or by other weights.
    """
    index.require(model)
    dtype = model.encoder.links.dtype
    known = encode_request(model, request, cache)
    scores = [
        model.fuse(model.encode_items(candidates, index[candidates].to(dtype)), known)
        for candidates in micro_batches(request, micro_batch)
    ]
    return torch.cat(scores, dim=1)


def micro_batches(request: Request, size: int) -> tuple[Tensor, ...]:
    """The candidates [B, M] of a request, ``size`` of them at a time.

    Raises:
        ValueError: ``size`` is less than 1.
    """
    if size < 1:
        raise ValueError(f"micro_batch is {size}; it must be 1 or more")
    return request.candidates.split(size, dim=1)
