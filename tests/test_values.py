"""Values: rows of codes that grow beside weights that do not move."""

import copy
import io
import threading

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from recsys_edu.data import Features
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings, FeatureEmbedding
from recsys_edu.values import Values

DENSE = {"price": [10.0, np.nan, 30.0]}
SPARSE = {"kind": ["a", "b", None], "tags": [["x", "y"], [], ["y"]]}


@pytest.fixture
def films():
    """Three films, one without a price, one without a kind."""
    return Features.fit(["f1", "f2", "f3"], DENSE, SPARSE)


def test_rows_are_what_the_features_are_and_unknown_is_nothing(films):
    codes = Values(films)(torch.tensor([0, 1, 2, -1]))
    assert codes.dense[:, 0].tolist() == [-1.0, 0.0, 1.0, 0.0]
    assert codes.sparse["kind"].tolist() == [1, 2, 0, 0]
    assert codes.sparse["tags"].tolist() == [[1, 2], [0, 0], [2, 0], [0, 0]]


def test_a_new_row_is_coded_as_the_old_ones_were(films):
    """Nothing is standardised anew; what was not there is unknown."""
    values = Values(films)
    before = values(torch.arange(3))
    new = values.add(
        ["f9", "f8"],
        {"price": [50.0, np.nan]},
        {"kind": ["z", "b"], "tags": [["q", "y"], ["x", "y", "x"]]},
    )
    assert new.tolist() == [3, 4] and len(values) == 5
    codes = values(new)
    assert codes.dense[:, 0].tolist() == [3.0, 0.0]  # (50 - 20) / 10
    assert codes.sparse["kind"].tolist() == [0, 2]
    assert codes.sparse["tags"].tolist() == [[2, 0], [1, 2]]
    after = values(torch.arange(3))
    assert torch.equal(after.dense, before.dense) and values.version == 0
    assert all(torch.equal(after.sparse[k], before.sparse[k]) for k in before.sparse)
    assert values.index(["f8", "f1", "no"]).tolist() == [4, 0, -1]
    assert values.ids.tolist() == ["f1", "f2", "f3", "f9", "f8"]


def test_columns_may_be_left_out_and_strange_ones_are_refused(films):
    values = Values(films)
    assert values(values.add(["f4"])).sparse["kind"].tolist() == [0]
    for wrong, message in (
        (dict(dense={"size": [1.0]}), r"no dense feature \['size'\]"),
        (dict(sparse={"kind": ["a", "b"]}), "'kind' has 2 values for 1 ids"),
        (dict(sparse={"kind": [["a"]]}), "feature 'kind': this column takes single"),
        (dict(sparse={"tags": ["x"]}), "feature 'tags': this column takes lists"),
    ):
        with pytest.raises(ValueError, match=message):
            values.add(["f5"], **wrong)
    with pytest.raises(ValueError, match=r"\['f2'\] are here already"):
        values.add(["f6", "f2"])
    with pytest.raises(ValueError, match="ids such as 7 are int64, and those here are"):
        values.add([7])
    assert len(values) == 4 and values.index(["f5", "f6"]).tolist() == [-1, -1]


def test_a_row_that_is_overwritten_moves_the_version(films):
    values = Values(films)
    read = values._codes  # as somebody does who is in the middle of a look-up
    values.replace(["f2"], {"price": [40.0]}, {"kind": ["a"]})
    assert values.version == 1
    codes = values(torch.arange(3))
    assert codes.dense[:, 0].tolist() == [-1.0, 2.0, 1.0]
    assert codes.sparse["kind"].tolist() == [1, 1, 0]
    assert read[1:4, 0].tolist() == [1, 2, 0]
    with pytest.raises(KeyError, match="'f7'"):
        values.replace(["f7"])


@pytest.mark.parametrize("index", [-2, 3, 4, 2**40])
def test_rows_that_are_not_written_are_nobody_s(films, index):
    values = Values(films)
    with pytest.raises(IndexError):
        values(torch.tensor([index]))
    values.add(["f4", "f5"])  # the tensors are then longer than the rows
    values.add(["f6"])
    with pytest.raises(IndexError):
        values(torch.tensor([-2 if index < 0 else 6]))


def test_the_log_and_the_ranker_do_not_share_memory(films):
    module = FeatureEmbedding(films, 4)
    before = module(torch.arange(3))
    films.dense[:] = 7.0
    films.sparse["kind"][:] = 1
    assert torch.equal(module(torch.arange(3)), before)


def test_growing_costs_what_is_new(films):
    """Doubling: a row is copied less than twice on the average, whatever is there."""
    values, copied = Values(films), 0
    for k in range(1000):
        size = len(values._codes)
        values.add([f"n{k}"])
        copied += size if len(values._codes) != size else 0
    assert copied < 2 * 1003


def test_readers_see_whole_rows_while_others_are_added(films):
    values, wrong = Values(films), []
    stop = threading.Event()

    def read():
        while not stop.is_set():
            known = values.index([f"n{k}" for k in range(300)])
            known = torch.from_numpy(known[known >= 0])
            kinds = values(known).sparse["kind"]
            wrong.extend(kinds[kinds != 2].tolist())

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for k in range(300):
        values.add([f"n{k}"], sparse={"kind": ["b"]})
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong and len(values) == 303


def test_copies_of_a_ranker_share_its_rows(films):
    ranker = DLRM(Embeddings(films, films, None, 4))
    average = AveragedModel(ranker)
    values = ranker.embeddings.items.values
    for copied in (copy.deepcopy(ranker), average.module):
        assert copied.embeddings.items.values is values
    assert not list(ranker.buffers())
    double = copy.deepcopy(ranker).double()
    double.embeddings.items.values.add(["f4"])
    assert len(values) == 3  # in another type they are other rows
    file = io.BytesIO()
    torch.save(ranker, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded.embeddings.items.values.index(["f2"]).tolist() == [1]


def test_features_come_back_from_values(films):
    values = Values(films)
    values.add(["f4"], {"price": [10.0]}, {"kind": ["b"], "tags": [["x"]]})
    again = values.features()
    assert again.ids.tolist() == ["f1", "f2", "f3", "f4"]
    assert again.dense[:, 0].tolist() == [-1.0, 0.0, 1.0, -1.0]
    assert again.sparse["tags"].tolist() == [[1, 2], [0, 0], [2, 0], [1, 0]]
    assert again.coding is films.coding
