"""FLOPs and bytes of every design by clock: the complete clock table.

One request of N events and M candidates, d wide, on a planted catalogue: counted, not
timed, so that any machine finds the same. A tick of the item clock is an item, of the
candidate clock a candidate; ``whole`` is what the user waits for, with the items' side
made before anyone asks. Takes half a minute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from recsys_edu.batch import random_request
from recsys_edu.cost import count
from recsys_edu.data.synthetic import planted_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.experiments.quality import MODELS as TRAINED
from recsys_edu.experiments.quality import NONE, D

KEY = ("model",)
N, M = 256, 512
MODELS = (
    "naive DLRM",
    "mean pooling",
    "DIN",
    "concat",
    "append-self",
    "append-cross",
    "STCA",
    "HSTU",
    "two-tower",
    "LIME-MHA",
    "LIME-XOR",
)


def runs(
    names: Sequence[str] = (), done: Mapping[tuple, dict] = NONE
) -> Iterator[dict]:
    """A row for each of :data:`MODELS`: FLOPs of each clock and of the whole request.

    In columns that end on ``_bytes``, bytes that the operations read and write.
    """
    log = planted_world(seed=0, n_impressions=2 * M, n_items=M).log
    request = random_request(log, N, M, seed=0)
    catalogue = torch.arange(M)[None]
    for name in MODELS:
        if (name,) in done or (names and name not in names):
            continue
        torch.manual_seed(0)
        embeddings = Embeddings(log.users.without("user_id"), log.items, log.events, D)
        model = DLRM(embeddings, TRAINED[name].encoder()).eval()
        with torch.inference_mode():
            items, side = model.encode_items(catalogue), model.encode_request(request)
            item = count(model.encode_items, catalogue)
            once = count(model.encode_request, request)
            candidates = count(model.fuse, items, side)
        work = {
            "item": item // M,
            "request": once,
            "candidate": candidates // M,
            "whole": once + candidates,
        }
        yield {
            "model": name,
            **{clock: cost.flops for clock, cost in work.items()},
            **{f"{clock}_bytes": cost.bytes for clock, cost in work.items()},
        }
