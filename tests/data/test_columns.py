"""Columns of features: what becomes dense, what a category, what a bag."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from recsys_edu.data import tables

LOG = pd.DataFrame(
    {"user": [1, 2, 1, 2], "item": [7, 8, 9, 7], "timestamp": [1, 2, 3, 4]}
).assign(label=[0, 1, 1, 0])


def features(column, dtype=None, **arguments):
    """The features of items 7, 8, 9, with one column called `it`; 10 has no row."""
    it = pd.Series(column, dtype=dtype)
    items = pd.DataFrame({"item": [7, 8, 9], "it": it}).iloc[::-1]
    log = pd.concat([LOG, LOG[:1].assign(item=10, timestamp=5)])
    return tables.read(log, item_features=items, **arguments).items


def categories(items):
    """The values that the codes of `it` stand for; None for 0."""
    values = [None, *items.coding.sparse["it"].values.tolist()]
    return [
        [values[c] for c in row if c] if row.ndim else values[row]
        for row in items.sparse["it"]
    ]


def raw(items, column=0):
    """The values that a dense column was standardised from."""
    scale = list(items.coding.dense.values())[column]
    return (items.dense[:, column] * scale.deviation + scale.mean).tolist()


@pytest.mark.parametrize(
    ("column", "dtype", "expected"),
    [
        (["Action|Comedy", "Comedy", None], None, [["Action", "Comedy"], ["Comedy"]]),
        (["b| a ||c", "", "c"], None, [["b", "a", "c"], [], ["c"]]),
    ],
)
def test_separated_text_is_a_bag_where_the_reader_says_so(column, dtype, expected):
    items = features(column, dtype, bags={"it": "|"})
    expected += [[]] * (4 - len(expected))
    assert categories(items) == expected


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([["b", "a"], ["a"], None], [["b", "a"], ["a"], [], []]),
        ([("b", "a"), (), ("c",)], [["b", "a"], [], ["c"], []]),
        ([{"b", "a"}, {"c"}, set()], [["a", "b"], ["c"], [], []]),
        ([[3, 1], [2], [1]], [[3, 1], [2], [1], []]),
        ([np.array(["b", "a"]), np.array(["c"]), None], [["b", "a"], ["c"], [], []]),
    ],
)
def test_lists_become_bags(column, expected):
    assert categories(features(column, object)) == expected
    assert categories(features(column, object, bags={"it": "|"})) == expected


@pytest.mark.parametrize("form", [list, tuple, np.array, np.float32])
def test_vectors_of_one_length_become_dense_columns(form):
    vectors = [form([1.0, 10.0]), form([2.0, 20.0]), form([3.0, 30.0])]
    items = features(vectors, object)
    assert items.dense_names == ("it.0", "it.1") and list(items.sparse) == ["item_id"]
    assert raw(items, 0) == pytest.approx([1, 2, 3, 2])  # 10 has no row: the mean
    assert raw(items, 1) == pytest.approx([10, 20, 30, 20])


def test_lists_and_vectors_survive_parquet(tmp_path):
    items = pd.DataFrame(
        {
            "item": [7, 8, 9],
            "tags": [["b", "a"], [], None],
            "vector": [[1.0, 2.0], [3.0, 4.0], None],
        }
    )
    items.to_parquet(tmp_path / "items.parquet")
    log = tables.read(LOG, item_features=tmp_path / "items.parquet")
    assert log.items.dense_names == ("vector.0", "vector.1")
    assert log.items.sparse["tags"].tolist() == [[2, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("column", "dtype", "expected"),
    [
        ([1, 2, 3], None, [1, 2, 3, 2]),
        ([1.0, None, 3.0], None, [1, 2, 3, 2]),
        ([1, None, 3], "Int64", [1, 2, 3, 2]),
        ([1, None, 3], object, [1, 2, 3, 2]),
        ([Decimal(1), Decimal(2), Decimal(3)], object, [1, 2, 3, 2]),
        (np.float32([1, 2, 3]), None, [1, 2, 3, 2]),
    ],
)
def test_numbers_of_any_type_are_dense(column, dtype, expected):
    assert raw(features(column, dtype)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        (pd.to_datetime(["1970-01-02", "1970-01-03", "1970-01-04"]), None),
        (pd.to_datetime(["1970-01-02", None, "1970-01-04"]), None),
        (pd.to_datetime(["1970-01-02", "1970-01-03", "1970-01-04"], utc=True), None),
        ([dt.date(1970, 1, 2), None, dt.date(1970, 1, 4)], object),
    ],
)
def test_dates_are_dense_days(column, dtype):
    assert raw(features(column, dtype)) == pytest.approx([1, 2, 3, 2])


@pytest.mark.parametrize(
    ("column", "dtype", "expected"),
    [
        (["b", "a", None], None, ["b", "a", None, None]),
        ([True, False, None], object, [True, False, None, None]),
        ([5, 3, 5], "category", [5, 3, 5, None]),
        ([None, None, None], object, [None, None, None, None]),
        (["7", "8", "7"], None, ["7", "8", "7", None]),
    ],
)
def test_text_booleans_and_categories_are_sparse(column, dtype, expected):
    assert categories(features(column, dtype)) == expected


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1.0, 2.0], [1.0], [2.0, 3.0]], "vectors of 1 to 2 numbers must be of one"),
        ([[1.0, np.inf], [1.0, 2.0], [1.0, 3.0]], "row 2: .*inf.*must be finite"),
        ([{"a": 1}, {"a": 2}, {"a": 3}], "values of type mixed are no feature"),
        ([[{"a": 1}], [], []], "lists of type mixed are no feature"),
        (["x", 1, 2], "values of type mixed-integer are no feature"),
        (["['a', 'b']", "[]", "['c']"], "a list that was written as text"),
        (["[0.5 1.5]", "[2. 3.]", "[4. 5.]"], "a list that was written as text"),
        (["3,5", "4,25", "7"], "a number with a decimal comma"),
        ([1j, 2j, 3j], "values of type complex"),
    ],
)
def test_what_cannot_be_a_feature_is_named(column, message):
    with pytest.raises(
        ValueError, match="the DataFrame item_features, column 'it', .*" + message
    ):
        features(column, object)


def test_a_column_of_names_is_told_and_can_be_the_title():
    n = 120
    log = pd.DataFrame(dict(user=[1, 2] * 60, item=range(n), timestamp=range(n)))
    log["label"] = [0, 0, 1, 1] * 30
    items = pd.DataFrame({"item": range(n), "name": [f"Film {k}" for k in range(n)]})
    with pytest.warns(
        UserWarning, match="120 different texts in 120 rows .*`title="
    ) as w:
        tables.read(log, item_features=items)
    assert w[0].filename == __file__
    read = tables.read(log, item_features=items, title="name")
    assert read.item_titles[:2].tolist() == ["Film 0", "Film 1"]
    assert list(read.items.sparse) == ["item_id"]


def test_a_column_with_bars_is_told():
    films = pd.DataFrame({"item": [7, 8, 9], "kind": ["a|b", "b", "c"]})
    message = r"'a\|b' is one category, here; if .*`bags={'kind': '\|'}`"
    with pytest.warns(UserWarning, match=message) as told:
        items = tables.read(LOG, item_features=films).items
    assert told[0].filename == __file__ and items.cardinality["kind"] == 4


def test_titles_stay_as_they_are_written(tmp_path):
    (tmp_path / "films.csv").write_text("item,title,year\n7,1984,1956\n8,NA,2010\n")
    log = tables.read(LOG, item_features=tmp_path / "films.csv", title="title")
    # A film without a row is called by its id.
    assert log.item_titles.tolist() == ["1984", "NA", "9"]
    assert log.items.dense_names == ("year",)
    films = pd.DataFrame({"item": [7, 8, 9], "title": [1984, None, 300]})
    log = tables.read(LOG, item_features=films, title="title")
    assert log.item_titles.tolist() == ["1984", "8", "300"]


def test_bags_and_titles_that_are_nowhere_are_named():
    films = pd.DataFrame({"item": [7, 8, 9], "kind": ["c", "a", "b"]})
    with pytest.raises(ValueError, match=r"no such feature {'genres'}.*'kind'"):
        tables.read(LOG, item_features=films, bags={"genres": "|"})
    with pytest.raises(ValueError, match=r"no column 'name', only .*'kind'"):
        tables.read(LOG, item_features=films, title="name")
    with pytest.raises(ValueError, match="column of item_features: give that too"):
        tables.read(LOG, title="name")


def test_the_ids_may_be_called_item_id():
    films = pd.DataFrame({"item_id": [7, 8, 9], "year": [1.0, 2, 3]})
    log = LOG.rename(columns={"item": "item_id"})
    items = tables.read(log, item="item_id", item_features=films).items
    assert items.dense_names == ("year",) and list(items.sparse) == ["item_id"]


def test_columns_may_be_numbered():
    films = pd.DataFrame({"item": [7, 8, 9], 0: [1.0, 2, 3], 1: ["a", "b", "a"]})
    items = tables.read(LOG, item_features=films).items
    assert items.dense_names == ("0",) and list(items.sparse) == ["item_id", "1"]
