"""Scoring strategies: the same scores, with the history read M times, or once.

Each is a function of a ranker and a request, [B] users with M candidates each, and
returns logits [B, M], -inf where no candidate is shown. Where two are defined for a
model they agree to rounding. All refuse a model in training mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from recsys_edu.batch import Request, hide
from recsys_edu.dlrm import DLRM, RequestSide
from recsys_edu.encoders.single_pass import OneSequence, SinglePassEncoder
from recsys_edu.scoring.link_index import LinkIndex
from recsys_edu.scoring.user_cache import UserCache
from recsys_edu.scoring.versions import require_eval

Encode = Callable[[Request], RequestSide]
"""An encoder of requests: ``model.encode_request``, or a cache's of the same model.

What it returns means nothing to another model; a cache of one is refused.
"""


def naive(model: DLRM, request: Request) -> Tensor:
    """One full pass for every candidate: the history is read M times. The oracle.

    Cost: M x (request clock + candidate clock).

    Raises:
        ValueError: the model is in training mode.
    """
    require_eval(model)
    scores = [model(part) for part in micro_batches(request, 1)]
    return torch.cat(scores, dim=1)


def amortized(
    model: DLRM, request: Request, *, micro_batch: int, encode: Encode | None = None
) -> Tensor:
    """M-FALCON: the history once, then candidates in micro-batches that read its code.

    Cost: request clock + M x candidate clock. The micro-batch bounds the memory that
    candidates take at a time. With a cache's ``encode``, the request clock pays for
    events that are new since the user's last request. Source: Zhai et al. 2024, section
    3.4.

    Args:
        encode: encodes requests; None for the model itself.

    Raises:
        ValueError: ``micro_batch`` is less than 1; the model is in training mode;
            ``encode`` is of a cache of another model.
    """
    require_eval(model)
    known = encoder_of(model, encode)(request)  # request clock, once
    scores = [
        model.fuse(model.encode_items(part.candidates), known)
        for part in micro_batches(request, micro_batch)
    ]
    return hide(torch.cat(scores, dim=1), request.shown)


def single_pass(model: DLRM, request: Request) -> Tensor:
    """One masked sequence [history; M candidates] through the encoder.

    Raises:
        TypeError: the encoder is not a ``OneSequence``; no mask makes one sequence
            of it without candidates reading each other.
        ValueError: the model is in training mode.
    """
    require_eval(model)
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
    encode: Encode | None = None,
) -> Tensor:
    """LIME with its item clock behind it: a candidate's link weights are looked up.

    What is left to a candidate is a look-up of r numbers and of its embeddings, a
    weighted sum of r links, the interaction and the top MLP: O(r d), whatever N.

    Cost: request clock + M x candidate clock, as :func:`amortized`, of a smaller one.

    Args:
        index: on the CPU, or on the device that scores, see :meth:`LinkIndex.to`.
        encode: as in :func:`amortized`.

    Raises:
        KeyError: candidates are not in an index on the CPU; the message names the first
            few. One on a device cannot look without waiting: their scores are NaN.
        ValueError: ``micro_batch`` is less than 1; the model is in training mode; the
            index was made by other weights, the cache is of another model.
    """
    require_eval(model)
    index.require(model)
    dtype, on_cpu = model.encoder.links.dtype, index.device.type == "cpu"
    known = encoder_of(model, encode)(request)
    scores = []
    for part in micro_batches(request, micro_batch):
        items = part.candidates
        code = index[items].to(dtype) if on_cpu else index.rows(items)
        scores.append(model.fuse(model.encode_items(items, code), known))
    return hide(torch.cat(scores, dim=1), request.shown)


def encoder_of(model: DLRM, encode: Encode | None) -> Encode:
    """What encodes a strategy's requests: ``encode``, or else the model itself.

    Raises:
        ValueError: it is a cache of another model.
    """
    cache = getattr(encode, "__self__", None)
    if isinstance(cache, UserCache) and cache.model is not model:
        raise ValueError("the cache holds histories that another model encoded")
    return encode or model.encode_request


def micro_batches(request: Request, size: int) -> list[Request]:
    """The same request with ``size`` of its M candidates at a time.

    Raises:
        ValueError: ``size`` is less than 1.
    """
    if size < 1:
        raise ValueError(f"micro_batch is {size}; it must be 1 or more")
    candidates = request.items.split(size, dim=1)
    if request.shown is None:
        return [replace(request, candidates=part) for part in candidates]
    parts = zip(candidates, request.shown.split(size, dim=1), strict=True)
    return [replace(request, candidates=part, shown=shown) for part, shown in parts]
