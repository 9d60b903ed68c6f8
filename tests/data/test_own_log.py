"""A reader's own log goes all the way: read, trained on, scored."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from recsys_edu.batch import batches, user_batches
from recsys_edu.data import Histories, split_by_time, tables
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder
from recsys_edu.training import HISTORY, fit, score_rows

# An epoch over 48 rows learns nothing, and `fit` says so.
pytestmark = pytest.mark.filterwarnings("ignore:the best validation NE")

ENCODERS = {
    "naive": lambda: None,
    "append-cross": lambda: AppendEncoder(4, layers=1, heads=1),
}


def rows(n=60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        dict(
            user=rng.integers(0, 5, n),
            item=rng.integers(0, 7, n),
            timestamp=1_700_000_000 + 60 * np.arange(n),
            label=np.arange(n) % 2,
            page=rng.permutation(n),
        )
    )


def trained(log, encoder) -> None:
    """Scores of the test rows after an epoch, by row and by user."""
    torch.manual_seed(0)
    history = 0 if encoder == "naive" else 5
    embeddings = Embeddings(log.users, log.items, log.events, 4)
    model = DLRM(embeddings, ENCODERS[encoder]())
    histories, split = Histories.from_log(log), split_by_time(log)
    for batching in (
        partial(batches, batch_size=16, max_events=history),
        partial(user_batches, max_tokens=64, max_events=history),
    ):
        recipe = replace(HISTORY, batching=batching, max_epochs=1)
        fit(model, log, histories, split, recipe, seed=0)
        scores = score_rows(model, log, histories, split.test, batching=batching)
        assert np.isfinite(scores).all() and np.ptp(scores) > 0
    request = model.request(int(log.user_ids[0]), log.item_ids[:3], now=1_800_000_000)
    assert torch.isfinite(model(request)).all()


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("events", ["all", "positive"])
def test_a_log_of_four_columns_trains_and_scores(encoder, events):
    trained(tables.read(rows(), events=events, request="page"), encoder)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_log_without_any_user_feature_trains_and_scores(encoder):
    log = tables.read(rows())
    users = log.users.without("user_id")
    assert not users.sparse and not users.dense_names
    trained(replace(log, users=users), encoder)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_features_of_any_name_and_kind_train_and_score(encoder):
    items = pd.DataFrame(
        {
            "item": range(7),
            "video.kind": ["a", "b", "a", None, "b", "a", "c"],
            "video.tags": ["x|y", "y", "", None, "z|x", "y", "x"],
            "": range(7),
            "type": ["a", "b"] * 3 + ["c"],
            "forward": ["a", "b"] * 3 + ["c"],
            "names": [["p"], ["q", "p"], [], ["q"], ["r"], ["p"], ["q"]],
            "vector.of 2": [
                [1.0, 2.0],
                [3.0, 5.0],
                None,
                *[[0.5, k] for k in range(4)],
            ],
            7: [1.5, 2.5, None, 3.5, 1.0, 0.0, 9.0],
            "seen": pd.date_range("2020-01-01", periods=7),
        }
    )
    log = tables.read(rows(), item_features=items, bags={"video.tags": "|"})
    assert log.items.dense_names == ("vector.of 2.0", "vector.of 2.1", "7", "seen")
    sparse = ["item_id", "video.kind", "video.tags", "type", "forward", "names"]
    assert list(log.items.sparse) == sparse
    trained(log, encoder)
