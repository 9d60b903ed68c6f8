"""Coding: fitted once; what comes later is written in the same codes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_edu.data import UNKNOWN, Coding, EventCoding, Features
from recsys_edu.data.coding import Categories, Scale

VALUES = st.one_of(
    st.lists(st.integers(-9, 2**62), min_size=1),
    st.lists(st.text(max_size=3), min_size=1),
    st.lists(st.booleans(), min_size=1),
)


@given(VALUES, st.data())
def test_a_code_is_one_plus_the_rank_and_zero_is_unknown(values, data):
    fitted = Categories.fit(values)
    ranks = {v: rank for rank, v in enumerate(sorted(set(values)))}
    later = data.draw(st.permutations([*values, None, "never seen", -77]))
    for column in (
        later,
        np.array(later, dtype=object),
        pd.Series(later, dtype=object),
    ):
        codes = fitted.encode(column).tolist()
        assert codes == [ranks[v] + 1 if v in ranks else 0 for v in later]
    assert fitted.rows == len(ranks) + 1


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.float64, bool])
def test_arrays_of_numbers_are_coded_as_lists_are(dtype):
    column = np.array([1, 0, 1, 1], dtype)
    later = np.array([0, 1, 3, 1]).astype(dtype)
    assert (
        Categories.fit(column).encode(later).tolist()
        == Categories.fit(column.tolist()).encode(later.tolist()).tolist()
    )


def test_missing_values_are_no_category():
    for column in (
        [2.0, np.nan, 1.0],
        np.array([2.0, np.nan, 1.0]),
        pd.array([2, None, 1], dtype="Int64"),
        np.array([2, None, 1], dtype=object),
    ):
        fitted = Categories.fit(column)
        assert fitted.rows == 3 and fitted.encode(column).tolist() == [2, 0, 1]


def test_a_column_without_any_value_is_unknown_throughout():
    for column in ([None, None], np.array([np.nan, np.nan])):
        fitted = Categories.fit(column)
        assert fitted.rows == 1 and fitted.encode(["a", 3.0]).tolist() == [0, 0]
        assert fitted.encode(np.array([3.0, 4.0])).tolist() == [0, 0]


def test_a_bag_keeps_its_first_known_values():
    fitted = Categories.fit([["b", "a"], None, ["c"]])
    assert (fitted.rows, fitted.width) == (4, 2)
    later = [["z", "c", "a", "b"], [], None, ["b"]]
    assert fitted.encode(later).tolist() == [[3, 1], [0, 0], [0, 0], [2, 0]]
    assert fitted.encode([[], []]).tolist() == [[0, 0], [0, 0]]


def test_the_order_of_categories_may_be_given():
    coding = Coding.fit({}, {"kind": ["b", "a"]}, {"kind": ["b", "c", "a"]})
    assert coding.sparse["kind"].encode(["a", "b", "c", "d"]).tolist() == [3, 1, 2, 0]
    numbers = Coding.fit({}, {"k": [5, 3]}, {"k": [5, 4, 3]}).sparse["k"]
    assert numbers.encode(np.array([3, 5, 9])).tolist() == [3, 1, 0]


def test_values_of_several_types_are_named():
    with pytest.raises(ValueError, match="'kind' holds values of several types"):
        Coding.fit({}, {"kind": ["a", 3]})


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_a_dense_column_is_standardised_by_what_was_there_first(values):
    scale = Scale.fit([*values, np.nan])
    spread = np.std(values) or 1.0
    later = [values[0], 12.5, np.nan]
    expected = [(values[0] - np.mean(values)) / spread]
    expected += [(12.5 - np.mean(values)) / spread, 0]
    assert np.allclose(scale.encode(later), np.float32(expected), rtol=1e-6)


def test_new_rows_of_a_log_keep_the_coding_of_the_first():
    films = Features.fit([7, 9], {"year": [1950, 1990]}, {"kind": ["b", "a"]})
    more = Features.encode(
        films.coding, [1, 2], {"year": [1970, np.nan]}, {"kind": ["a", "new"]}
    )
    assert more.dense[:, 0].tolist() == [0.0, 0.0]
    assert more.sparse["kind"].tolist() == [1, 0]
    assert more.cardinality == films.cardinality
    assert Features.encode(films.coding, [3], {}, {}).sparse["kind"].tolist() == [0]


def test_features_that_are_codes_already_have_a_coding_that_is_none():
    codes = np.array([[2, 0], [1, 3]])
    made = Features(np.zeros((2, 0), np.float32), (), {"bag": codes}, {"bag": 4})
    again = Features.encode(made.coding, [0, 1], {}, {"bag": [[2], [1, 3]]})
    assert np.array_equal(again.sparse["bag"], codes)


def test_ids_are_found_in_any_order_and_strangers_are_unknown():
    features = Features.fit(["b", "a"])
    assert features.index(["a", "c", "b"]).tolist() == [1, UNKNOWN, 0]
    assert Features.fit([2**63 - 1, 5]).index([2**63 - 1]).tolist() == [0]


def test_actions_are_coded_by_place():
    coding = EventCoding(("skip", "click"), 0, 9)
    assert coding.index(["click", "hate", "skip"]).tolist() == [1, UNKNOWN, 0]
    assert EventCoding((1, 2, 5)).index(np.array([5, 3])).tolist() == [2, UNKNOWN]
