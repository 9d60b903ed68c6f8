"""Ids come back as what they were, and tables whose ids do not meet are told."""

import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from recsys_edu.data import tables
from recsys_edu.data.ids import numbered, spelled
from recsys_edu.data.sheet import Sheet

BIG = 9_223_372_036_854_775_807  # the last int64, of 19 digits
HASH = 18_446_744_073_709_551_615  # the last uint64, of 20


def ids(values, dtype=None):
    """Each row's id as it leaves the module."""
    column = values if isinstance(values, pd.Series) else pd.Series(values, dtype=dtype)
    place, known = spelled(Sheet(pd.DataFrame({"id": column}), "the log"), "id")
    names, out = numbered(known)
    return out[names.get_indexer(known)][place]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([BIG, BIG - 1, 5], None, [BIG, BIG - 1, 5]),
        ([HASH, HASH - 1, 5], "uint64", [str(HASH), str(HASH - 1), "5"]),
        ([BIG + 1, 5], "uint64", [str(BIG + 1), "5"]),
        ([BIG, BIG - 1], "uint64", [BIG, BIG - 1]),
        ([str(BIG), str(BIG - 1)], None, [BIG, BIG - 1]),
        ([str(HASH), "5"], None, [str(HASH), "5"]),
        ([HASH * 10, 5], object, [str(HASH * 10), "5"]),
        ([-BIG - 1, 3], None, [-BIG - 1, 3]),
        ([2.0, 1.0, 2.0], None, [2, 1, 2]),
        ([2, 1], "Int64", [2, 1]),
        ([2.0, 1.0], "Float64", [2, 1]),
        ([7, "7", 8], object, [7, 7, 8]),
        ([7, 8.0], object, [7, 8]),
        (["2.0", "1.0"], None, [2, 1]),
        (["007", "7", "7"], None, ["007", "7", "7"]),
        (["NA", "null", "None", "nan", "<NA>"], None, ["NA", "null", "None", "nan"]),
        (["b", "a", "b"], "category", ["b", "a", "b"]),
        ([2, 1, 2], "category", [2, 1, 2]),
        (["b", "a"], "string[pyarrow]", ["b", "a"]),
        ([uuid.UUID(int=1)], object, ["00000000-0000-0000-0000-000000000001"]),
        (["v1.0", "1.0"], None, ["v1.0", "1.0"]),
    ],
)
def test_ids_come_back_as_what_they_were(values, dtype, expected):
    assert ids(values, dtype).tolist()[: len(expected)] == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.5, 2.0], "row 0: 1.5; ids of type float that are no whole numbers"),
        ([1.0, 2.0**53], "row 1: 9007199254740992.0; as a float, an id of 16 digits"),
        (["1", "1.0"], "row 1: '1.0'; some ids end in '.0' and some do not"),
        (["5", "1.2345678901234567e+18"], "row 1: '1.23.*write it in full"),
        ([True, False], "row 0: True; these are of type boolean"),
        ([b"a", b"b"], r"row 0: b'a'; .*str.decode\('utf-8'\)"),
        ([["a"], ["b"]], r"row 0: \['a'\]; an id is a number or text"),
        ([Decimal(1)], "these are of type decimal"),
        (pd.to_datetime(["2022-04-08"]), "these are of type datetime64"),
        (["a", None], "row 1: .*; fill in the missing value"),
    ],
)
def test_what_cannot_be_an_id_is_named(values, message):
    with pytest.raises(ValueError, match="the log, column 'id', .*" + message):
        ids(values)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    "users",
    [
        [str(HASH), "NA", "null", "None", "nan"],
        [BIG, BIG - 1, BIG - 2, 0, 7],
        ["007", "7", "0", "+7", "1e5"],
    ],
)
def test_ids_survive_a_file(tmp_path, suffix, users):
    path = tmp_path / f"log.{suffix}"
    columns = dict(user=users, item=range(5), timestamp=range(5), label=[0, 1, 0, 1, 0])
    data = pd.DataFrame(columns)
    data.to_csv(path, index=False) if suffix == "csv" else data.to_parquet(path)
    log = tables.read(path)
    assert log.user_ids[log.user].tolist() == users


def rows(items):
    n = len(items)
    return pd.DataFrame(
        dict(user=[k % 2 for k in range(n)], item=items, timestamp=range(n))
    ).assign(label=[k % 2 for k in range(n)])


def test_an_integer_column_meets_a_float_and_a_text_column():
    price = [1.0, 2.0, 3.0]
    for other in ([7.0, 8.0, 9.0], ["7", "8", "9"], ["7.0", "8.0", "9.0"]):
        films = pd.DataFrame({"item": other, "price": price})
        log = tables.read(rows([9, 7, 8]), item_features=films)
        assert log.item_ids.tolist() == [7, 8, 9]
        assert (np.diff(log.items.dense[:, 0]) > 0).all()


def test_tables_that_share_few_ids_are_told_with_the_share_and_examples():
    films = pd.DataFrame({"item": [3, 70, 80], "price": [1.0, 2, 3]})
    message = "features, column 'item': 25.0% of the 4 ids .*; '0' is not, and '70' is"
    with pytest.warns(UserWarning, match=message) as told:
        log = tables.read(rows([0, 1, 2, 3]), item_features=films)
    assert told[0].filename == __file__
    assert log.item_ids.tolist() == [0, 1, 2, 3, 70, 80]


@pytest.mark.parametrize(
    ("here", "there", "cause"),
    [
        (["a ", "b "], ["a", "b"], "blanks around them"),
        (["Ann", "Bob"], ["ann", "bob"], "capitals"),
        (["007", "011"], [7, 11], "leading zeros"),
    ],
)
def test_what_keeps_ids_apart_is_named_and_its_mend_works(here, there, cause):
    log, films = rows(here), pd.DataFrame({"item": there, "price": [1.0, 2.0]})
    with pytest.raises(ValueError, match=f"0.0% of the 2 ids.*{cause}") as error:
        tables.read(log, item_features=films)
    code = str(error.value).split("`")[1]
    mended = []
    for frame in (log, films):
        exec(code, scope := {"frame": frame.copy()})
        mended.append(scope["frame"])
    log = tables.read(mended[0], item_features=mended[1])
    assert log.n_items == 2 and log.items.dense.tolist() == [[-1], [1]]
