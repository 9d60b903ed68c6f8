"""Training speed beside libraries that train a Transformer over the history.

    python -m recsys_edu.experiments peers

Every contender trains on ML-100K (the first 80 % of the log by time; a rating of 4 or
more is a success) in one process, on one thread, in turns. A turn is a pass over a
fixed sample of training batches: forward, loss, backward and optimizer, batch after
batch. Batches are tensors built beforehand, for all alike, so that no loader is timed;
what a train step does to its batch (moves, casts, masks) is. Seconds are CPU seconds of
this process: on a busy machine, other jobs do not count.

Ours is append-cross, a ``DLRM`` around ``AppendEncoder(causal=True)``, twice: one row
per impression, and amortized, which is all impressions of a user in one pass with their
full histories; there, a turn is an epoch. The peers run their own model classes and
train steps, with Adam at 1e-3. A DIN, which has no Transformer, is there for reference.
A peer that is not installed is skipped, and what installs it is printed. FuxiCTR keeps
its BST in its repository, outside its wheel.

Embeddings are 32 wide; Transformers have 2 layers of 2 heads and, where the width of
the FFN can be set, 128 there. What is left is the library's default. The peers read
item ids, age group and gender; ours also reads each event's rating, each film's genres
and year, and the user's age. Reading less makes the peers faster, not slower.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from statistics import fmean
from time import process_time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from recsys_edu.batch import batches, user_batches
from recsys_edu.bench import Ratio, Timing, compare, environment, ratio
from recsys_edu.data.interactions import Histories, InteractionLog
from recsys_edu.data.movielens import load_100k
from recsys_edu.data.splits import split_by_time
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder
from recsys_edu.training import train_epoch

if TYPE_CHECKING:
    from fuxictr.features import FeatureMap

N, D, LAYERS, HEADS, FFN = 50, 32, 2, 2, 128
BATCH = 128  # rows; larger batches change no rate by much
ROWS = 20 * BATCH  # impressions a turn, where a row is an impression
OVER_LOOP, OVER_PEER = 10, 5  # the bars: amortized over its own loop, over a peer

PeerBatch = dict[str, Tensor]
"""item_id, age_group, gender, label [B] and history [B, N], oldest first, 0 = none."""


@dataclass(frozen=True)
class Contender:
    """One line of the table: a model, and a way to train it for one turn."""

    name: str
    what: str  # what it runs
    model: nn.Module
    turn: Callable[[], float]  # trains, and returns the mean log loss in nats
    impressions: int = ROWS  # a turn
    n: str = str(N)  # how many events an impression may read
    transformer: bool = True


@dataclass(frozen=True)
class Result:
    """What came of a contender."""

    contender: Contender
    seconds: Timing  # per impression
    faster: Ratio  # amortized training over it
    losses: list[float]  # mean log loss of each turn, in nats
    constant: float  # log loss of the best constant, in nats

    @property
    def rate(self) -> tuple[float, float, float]:
        """Impressions per second: first quartile, median, third quartile."""
        return 1 / self.seconds.high, 1 / self.seconds.median, 1 / self.seconds.low

    @property
    def learns(self) -> bool:
        """Whether its last turn beats its first and a constant: it does train."""
        return self.losses[-1] < min(self.losses[0], self.constant)

    @property
    def parameters(self) -> int:
        """How many numbers the model learns, embedding tables included."""
        return sum(weight.numel() for weight in self.contender.model.parameters())


def ours(
    log: InteractionLog, histories: Histories, train: np.ndarray, rows: np.ndarray
) -> Iterator[Contender]:
    """Append-cross, amortized over ``train``, and one row for each of ``rows``."""
    users = log.users.without("user_id", "occupation")
    lengths = histories.lengths(train)
    for name, n, sample in (
        (
            "append-cross, amortized",
            f"all (mean {lengths.mean():.0f}, at most {lengths.max()})",
            list(user_batches(log, histories, train, max_tokens=2048)),
        ),
        (
            "append-cross, one row per impression",
            str(N),
            list(batches(log, histories, rows, batch_size=BATCH, max_events=N)),
        ),
    ):
        torch.manual_seed(0)
        model = DLRM(
            Embeddings(users, log.items, log.events, D),
            AppendEncoder(D, causal=True, layers=LAYERS, heads=HEADS),
        )
        # Not fused: the peers' own Adam is not, and models are compared here.
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=3.0)
        yield Contender(
            name,
            f"{LAYERS} layers, width {D}, FFN {4 * D}; DLRM",
            model,
            partial(train_epoch, model, sample, optimizer),
            sum(int((batch.row >= 0).sum()) for batch in sample),
            n,
        )


def peer_batches(
    log: InteractionLog, histories: Histories, rows: np.ndarray
) -> list[PeerBatch]:
    """``rows`` of the log as the peers read them: ids from 1, 0 for padding."""
    start, end = histories.start[rows, None], histories.end[rows, None]
    event = end - N + np.arange(N)  # [R, N], the padding in front
    columns = {
        "item_id": log.item[rows] + 1,
        "history": np.where(event < start, 0, histories.item[event] + 1),
        "age_group": log.users.sparse["age_group"][log.user[rows]],
        "gender": log.users.sparse["gender"][log.user[rows]],
        "label": log.label[rows],
    }
    return [
        {name: torch.from_numpy(c[i : i + BATCH]) for name, c in columns.items()}
        for i in range(0, len(rows), BATCH)
    ]


def fuxictr(sample: list[PeerBatch], sizes: dict[str, int]) -> Iterator[Contender]:
    """FuxiCTR's TransAct and DIN, from its collection for long histories."""
    from model_zoo.LongCTR import DIN, TransAct

    def long_ctr(batch: PeerBatch) -> tuple[PeerBatch, PeerBatch, Tensor]:
        """What its LongCTRDataLoader yields: columns, [history; item], mask."""
        columns = {name: batch[name] for name in ("age_group", "gender", "label")}
        items = torch.cat([batch["history"], batch["item_id"][:, None]], dim=1)
        return columns, {"item_id": items.flatten()}, (batch["history"] > 0).float()

    triples = [long_ctr(batch) for batch in sample]
    size = {"transformer_layers": LAYERS, "num_heads": HEADS, "dim_feedforward": FFN}
    model = TransAct(fuxictr_features(sizes), **size, **FUXICTR)
    yield Contender(
        "FuxiCTR TransAct",
        f"{LAYERS} layers, width {2 * D}, FFN {FFN}, concat fusion; DCNv2",
        model,
        partial(train_fuxictr, model, triples),
    )
    model = DIN(fuxictr_features(sizes), **FUXICTR)
    turn = partial(train_fuxictr, model, triples)
    what = "target attention; MLP"
    yield Contender("FuxiCTR DIN", what, model, turn, transformer=False)


def fuxictr_bst(sample: list[PeerBatch], sizes: dict[str, int]) -> Iterator[Contender]:
    """FuxiCTR's BST, whose FFN is as wide as the model."""
    from BST import BST

    features = fuxictr_features(sizes)
    history = {"type": "sequence", "max_len": N, "share_embedding": "item_id"}
    features.features["history"] = features.features["item_id"] | history
    fields = {"bst_target_field": "item_id", "bst_sequence_field": "history"}
    size = {"stacked_transformer_layers": LAYERS, "num_heads": HEADS}
    model = BST(features, **fields, **size, **FUXICTR)
    yield Contender(
        "FuxiCTR BST",
        f"{LAYERS} layers, width {2 * D}, FFN {2 * D}, append fusion; MLP",
        model,
        partial(train_fuxictr, model, sample),
    )


FUXICTR = {
    "embedding_dim": D,
    "optimizer": "adam",
    "loss": "binary_crossentropy",
    "metrics": [],
    "model_root": "",  # where fit would save its checkpoints
    "verbose": 0,
}


def fuxictr_features(sizes: dict[str, int]) -> FeatureMap:
    """FuxiCTR's description of the columns, in memory instead of in a file."""
    from fuxictr.features import FeatureMap

    features = FeatureMap("ml-100k", data_dir="")
    features.labels, features.default_emb_dim = ["label"], D
    for name, side in (("age_group", "user"), ("gender", "user"), ("item_id", "item")):
        column = {"type": "categorical", "source": side, "padding_idx": 0}
        features.features[name] = column | {"vocab_size": sizes[name]}
    return features


def train_fuxictr(model: nn.Module, sample: list) -> float:
    """FuxiCTR's ``train_step``, as its ``train_epoch`` calls it."""
    # Its fit sets these two, the first to its default; train_step reads them.
    model._max_gradient_norm, model._batch_index = 10.0, 0
    return fmean(model.train_step(batch).item() for batch in sample)


def torch_rechub(sample: list[PeerBatch], sizes: dict[str, int]) -> Iterator[Contender]:
    """Torch-RecHub's BST under its CTRTrainer."""
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import BST
    from torch_rechub.trainers import CTRTrainer

    items = {"vocab_size": sizes["item_id"], "embed_dim": D, "padding_idx": 0}
    model = BST(
        [SparseFeature(name, sizes[name], D) for name in ("age_group", "gender")],
        [SequenceFeature("history", pooling="concat", shared_with="item_id", **items)],
        [SparseFeature("item_id", **items)],
        {"dims": [256, 128, 64]},  # it has no default; this is FuxiCTR's
        nhead=HEADS,
        num_layers=LAYERS,
        max_seq_len=N + 1,
    )
    trainer = CTRTrainer(model)
    pairs = [(batch, batch["label"]) for batch in sample[:4]]  # all take it 15 s

    def turn() -> float:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            return trainer.train_one_epoch(pairs)

    what = f"{LAYERS} layers, width {D}, FFN 2048 (fixed), append fusion; MLP"
    yield Contender("Torch-RecHub BST", what, model, turn, len(pairs) * BATCH)


INSTALL = {
    fuxictr: "pip install fuxictr==2.3.10",
    fuxictr_bst: "pip install fuxictr==2.3.10, clone https://github.com/reczoo/FuxiCTR "
    "and put its folder model_zoo/BST/src on PYTHONPATH",
    torch_rechub: "pip install torch-rechub==0.9.0",
}


def run(rounds: int) -> list[Result]:
    """Times ours and every installed peer; says how to install the others."""
    log = load_100k()
    histories = Histories.from_log(log)
    train = split_by_time(log).train
    rows = np.random.default_rng(0).permutation(train)[:ROWS]
    contenders = list(ours(log, histories, train, rows))
    sample = peer_batches(log, histories, rows)
    sizes = {"item_id": log.n_items + 1, **log.users.cardinality}
    for library, install in INSTALL.items():
        torch.manual_seed(0)
        try:
            contenders.extend(library(sample, sizes))
        except ModuleNotFoundError as error:
            print(f"Skipped {library.__name__}: {error}. To include it: {install}.\n")

    losses: list[list[float]] = [[] for _ in contenders]

    def turn(number: int) -> None:
        losses[number].append(contenders[number].turn())

    turns = {each.name: partial(turn, i) for i, each in enumerate(contenders)}
    times = compare(turns, rounds=rounds, timer=process_time)
    per_row = [times[each.name] / each.impressions for each in contenders]
    p = float(log.label[train].mean())
    constant = -p * math.log(p) - (1 - p) * math.log(1 - p)
    return [
        Result(each, seconds, ratio(seconds, per_row[0]), loss, constant)
        for each, seconds, loss in zip(contenders, per_row, losses, strict=True)
    ]


def report(results: list[Result]) -> None:
    """Prints the table, the two bars, and everything again as one line of JSON."""
    print(
        "| model | runs | N | parameters | impressions per CPU second (IQR) "
        "| amortized over it | log loss, first to last turn |\n" + "| --- " * 7 + "|"
    )
    for each in results:
        low, median, high = each.rate
        loss = f"{each.losses[0]:.3f} to {each.losses[-1]:.3f}"
        print(
            f"| {each.contender.name} | {each.contender.what} | {each.contender.n} "
            f"| {each.parameters:,} | {median:,.0f} ({low:,.0f}-{high:,.0f}) "
            f"| {each.faster} | {loss}{'' if each.learns else ', not learning'} |"
        )
    _, loop, *peers = results
    bars = [(loop, OVER_LOOP)]
    if rivals := [peer for peer in peers if peer.contender.transformer and peer.learns]:
        bars.append((max(rivals, key=lambda peer: peer.rate[1]), OVER_PEER))
    else:
        print("\nNo peer trained a Transformer: that bar is not tested.")
    for each, bar in bars:
        verdict = "met" if each.faster.median >= bar else "missed"
        print(f"\nAmortized over {each.contender.name}: {each.faster}.", end=" ")
        print(f"The bar is {bar}x: {verdict}.")
    packages = [n for n in ("fuxictr", "torch_rechub") if importlib.util.find_spec(n)]
    line = {
        "benchmark": "peers",
        "environment": environment() | {name: version(name) for name in packages},
        "bars": {each.contender.name: bar for each, bar in bars},
        "results": [
            {
                "model": each.contender.name,
                "n": each.contender.n,
                "parameters": each.parameters,
                "impressions_per_cpu_second": each.rate,
                "amortized_over_it": each.faster.samples,
                "log_loss": each.losses,
            }
            for each in results
        ],
    }
    print(f"\n{json.dumps(line)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Training speed beside other libraries"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (7)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    report(run(rounds))
