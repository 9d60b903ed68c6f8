"""A reader's own log: what is read, and what is refused with which words."""

import numpy as np
import pandas as pd
import pytest

from recsys_edu.data import Histories, tables

LOG = {
    "user": ["ann", "bob", "ann", "ann", "bob"],
    "item": [7, 7, 9, 9, 8],
    "timestamp": [30, 20, 10, 30, 20],
    "label": [1, 0, 1, 0, 1],
}


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame(LOG | columns)


@pytest.fixture(params=["frame", "csv", "parquet"])
def table(request, tmp_path):
    """A function: DataFrame -> the same as a DataFrame, a CSV or a Parquet file."""

    def make(data: pd.DataFrame, name: str = "log"):
        path = tmp_path / f"{name}.{request.param}"
        if request.param == "frame":
            return data
        write = data.to_csv if request.param == "csv" else data.to_parquet
        write(path, index=False)
        return path

    return make


def test_an_unsorted_log_is_read_in_time_order(table):
    log = tables.read(table(frame()))
    assert log.user_ids.tolist() == ["ann", "bob"]
    assert log.item_ids.tolist() == [7, 8, 9]
    assert log.timestamp.tolist() == [10, 20, 20, 30, 30]
    assert log.user.tolist() == [0, 1, 1, 0, 0]
    assert log.item_ids[log.item].tolist() == [9, 7, 8, 7, 9]
    assert log.label.tolist() == log.action.tolist() == [1, 0, 1, 1, 0]
    assert log.n_actions == 2
    lengths = Histories.from_log(log).lengths(np.arange(5))
    assert lengths.tolist() == [0, 0, 0, 1, 1]


def test_columns_may_be_called_anything(table):
    renamed = frame(act=["view", "buy", "view", "like", "view"]).rename(
        columns={"user": "who", "item": "what", "timestamp": "when", "label": "y"}
    )
    log = tables.read(
        table(renamed),
        user="who",
        item="what",
        timestamp="when",
        label="y",
        action="act",
    )
    assert log.n_actions == 3
    assert log.action.tolist() == [2, 0, 2, 2, 1]


def test_duplicate_rows_are_kept(table):
    twice = pd.concat([frame(), frame()])
    assert len(tables.read(table(twice))) == 10


def test_a_log_of_successes_only_has_the_action_of_success(table):
    log = tables.read(table(frame(label=1)))
    assert log.action.tolist() == [1] * 5 and log.n_actions == 2


def test_milliseconds_become_seconds_and_keep_their_order(table):
    times = [1_700_000_000_900, 1_700_000_000_100, 1_700_000_000_500, 1_700_000_001_000]
    rows = frame().iloc[:4].assign(timestamp=times, user="ann", item=[9, 7, 8, 6])
    log = tables.read(table(rows), unit="ms")
    assert log.timestamp.tolist() == [1_700_000_000] * 3 + [1_700_000_001]
    assert log.item_ids[log.item].tolist() == [7, 8, 9, 6]


def test_features_of_each_kind(table):
    users = pd.DataFrame(
        {"user": ["bob", "ann"], "age": [20, 40], "vip": [True, False]}
    )
    items = pd.DataFrame(
        {
            "item": [9, 8, 7, 100],
            "price": [1.0, np.nan, 3.0, 5.0],
            "brand": ["x", "y", None, "x"],
        }
    )
    log = tables.read(
        table(frame()),
        user_features=table(users, "users"),
        item_features=table(items, "items"),
    )
    assert log.users.dense_names == ("age",)
    assert log.users.dense.tolist() == [[1], [-1]]
    assert log.users.sparse["vip"].tolist() == [1, 2]
    assert log.users.sparse["user_id"].tolist() == [1, 2]
    assert log.item_ids.tolist() == [7, 8, 9, 100]  # 100 was never shown
    assert log.items.sparse["brand"].tolist() == [0, 2, 1, 1]
    assert log.items.dense[1] == [0] and log.items.dense[0] == [0]
    assert log.items.cardinality == {"item_id": 5, "brand": 3}


def test_an_id_without_a_row_of_features_gets_unknowns(table):
    users = pd.DataFrame(
        {"user": ["bob"], "vip": [True], "age": [30], "city": ["Oslo"]}
    )
    log = tables.read(table(frame()), user_features=table(users, "users"))
    assert log.users.sparse["vip"].tolist() == [0, 1]
    assert log.users.sparse["city"].tolist() == [0, 1]
    assert log.users.dense.tolist() == [[0], [0]]


def test_ids_written_differently_are_different(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp,label\n7,1,1,0\n007,1,2,1\n")
    log = tables.read(path)
    assert log.user_ids.tolist() == ["007", "7"]


def test_whole_number_ids_are_numbers_in_their_order(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp,label\n10,1,1,0\n9,1,2,1\n")
    log = tables.read(path)
    assert log.user_ids.dtype == np.int64 and log.user_ids.tolist() == [9, 10]
    assert log.user_index([10]).tolist() == [1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": ["a", None, "b", "c", "d"]}, "column 'user', row 1: .*missing value"),
        ({"timestamp": [1, 2, None, 4, 5]}, "column 'timestamp', row 2: nan"),
        ({"label": [0, 1, 1, np.nan, 1]}, "column 'label', row 3: nan"),
        ({"label": [0, 1, 2, 1, 3]}, r"'label', row 2: .*2.*0 or 1.*\(2 such rows\)"),
        ({"label": ["0", "1", "yes", "1", "1"]}, "'label', row 2: 'yes'; .* a number"),
        ({"timestamp": [1, 2, 3, -4, 5]}, "'timestamp', row 3: .*-4"),
        (
            {"timestamp": ["1", "2", "3", "noon", "5"]},
            "'timestamp', row 3: 'noon'; .* number",
        ),
        ({"timestamp": [1, 2, 3, np.inf, 5]}, "'timestamp', row 3: .*inf"),
        ({"timestamp": [1, 17 * 10**11, 3, 4, 5]}, "row 1: .*say unit='ms'"),
    ],
)
def test_a_bad_value_is_named(table, columns, message):
    data = table(frame(**columns))
    with pytest.raises(ValueError, match=message) as error:
        tables.read(data)
    name = "the DataFrame" if isinstance(data, pd.DataFrame) else str(data)
    assert name in str(error.value)


def test_a_missing_column_is_named_with_those_there(table):
    with pytest.raises(ValueError, match=r"no column 'label', only \['user', 'item'"):
        tables.read(table(frame().drop(columns="label")))


def test_seconds_called_milliseconds_are_noticed(table):
    with pytest.raises(ValueError, match="say unit='s'"):
        tables.read(table(frame(timestamp=1_700_000_000)), unit="ms")


def test_dates_are_refused_with_the_conversion():
    dates = frame(timestamp=pd.to_datetime(LOG["timestamp"], unit="s"))
    with pytest.raises(ValueError, match="holds dates: make them seconds"):
        tables.read(dates)
    dates["timestamp"] = (dates["timestamp"] - pd.Timestamp(0)) // pd.Timedelta("1s")
    assert tables.read(dates).timestamp.tolist() == sorted(LOG["timestamp"])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"item": [7, 8, 7]}, "column 'item', row 2: .*7.* a second row"),
        ({"item": [70, 80, 90]}, "column 'item': none of the ids of .*'70'.*'7'"),
        ({"item": [7, 8, None]}, "column 'item', row 2: .*missing value"),
        ({"item": [7.0, 8.5, 9.0]}, "ids of type float64"),
        ({"sku": [7, 8, 9]}, "no column 'item'"),
        ({"item": [7, 8, 9], "price": [1, np.inf, 2]}, "'price', row 1: .*finite"),
        ({"item": [7, 8, 9], "item_id": [1, 2, 3]}, "'item_id' is taken"),
    ],
)
def test_a_bad_feature_table_is_refused(items, message):
    with pytest.raises(ValueError, match=message):
        tables.read(frame(), item_features=pd.DataFrame(items))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "user,item,timestamp,label\n1,2,3,0\n1,2,3,0,5,6\n", "line 3"),
        ("a.csv", "user,item,timestamp,label\n1,2,3,0\n1,2\n", "'timestamp', row 1"),
        ("a.csv", "user,item,timestamp,label\n", "no rows"),
        ("a.csv", "", "cannot be read"),
        ("a.parquet", "no parquet", "cannot be read"),
        ("a.xlsx", "", "expected a .csv or a .parquet"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        tables.read(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        tables.read(tmp_path / "absent.csv")


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match=r"unit 'ns' is none of \['s', 'ms'\]"):
        tables.read(frame(), unit="ns")
