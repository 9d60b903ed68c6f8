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


@pytest.mark.filterwarnings("ignore:.*every label is 1")
def test_a_log_of_successes_only_has_the_action_of_success(table):
    log = tables.read(table(frame(label=1)))
    assert log.action.tolist() == [1] * 5 and log.n_actions == 2


@pytest.mark.filterwarnings("ignore:.*of one user")
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


@pytest.mark.filterwarnings("ignore:.*of one item")
def test_ids_written_differently_are_different(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp,label\n7,1,1,0\n007,1,2,1\n")
    log = tables.read(path)
    assert log.user_ids.tolist() == ["007", "7"]


@pytest.mark.filterwarnings("ignore:.*of one item")
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
        (
            {"label": ["0", "1", "maybe", "1", "1"]},
            "'label', row 2: 'maybe'; .*leave out such",
        ),
        ({"timestamp": [1, 2, 3, -4, 5]}, "'timestamp', row 3: .*-4"),
        (
            {"timestamp": ["1", "2", "3", "noon", "5"]},
            "'timestamp', row 3: 'noon'; .* number",
        ),
        ({"timestamp": [1, 2, 3, np.inf, 5]}, "'timestamp', row 3: .*inf"),
        ({"timestamp": [1, 17 * 10**8, 3, 4, 5]}, "row 0: 1; decades before the rest"),
        (
            {"label": [-1, 1, 1, -1, 1]},
            "'label', row 0: -1; .*what counts as a success",
        ),
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
    with pytest.raises(ValueError, match="say `unit='s'`"):
        tables.read(table(frame(timestamp=1_700_000_000)), unit="ms")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"item": [7, 8, 7]}, "column 'item', row 2: .*7.* a second row"),
        (
            {"item": [70, 80, 90]},
            "column 'item': 0.0% of the 3 ids .*'7' is not, and '7",
        ),
        ({"item": [7, 8, None]}, "column 'item', row 2: .*missing value"),
        ({"item": [7.0, 8.5, 9.0]}, "row 1: 8.5; ids of type float that"),
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
        ("a.csv", "", "it is empty"),
        ("a.csv", "\n \n", "it is empty"),
        ("a.csv", "1,7,30,1\n2,7,40,0\n", "its first line is data"),
        ("a.json", '{"user": 1}\n', r"no text file .*pandas\.read_json\("),
        ("a.json", '[{"user": 1}]', r"no text file .*pandas\.read_json\("),
        ("a.feather", "ARROW1..", r"no text file .*pandas\.read_feather\("),
        ("a.parquet", "no parquet", "cannot be read"),
        ("a.xlsx", "PK\x03\x04", r"no text file .*pandas\.read_excel\("),
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


def test_what_is_no_table_is_named():
    with pytest.raises(ValueError, match=r"not <class 'dict'>; mend: `frame = "):
        tables.read(LOG)


def test_an_unknown_unit_is_refused():
    with pytest.raises(
        ValueError, match=r"unit 'h' is none of \['s', 'ms', 'us', 'ns'"
    ):
        tables.read(frame(), unit="h")


@pytest.mark.parametrize(
    "label",
    [
        [1, 0, 1, 0, 1],
        [1.0, 0.0, 1.0, 0.0, 1.0],
        [True, False, True, False, True],
        ["1", "0", "1", "0", "1"],
        ["1.0", "0.0", "1", "0", "1"],
        ["true", "false", "true", "false", "true"],
        ["True", "FALSE", " true", "false ", "True"],
        ["yes", "no", "Yes", "No", "yes"],
        ["true", "0", "1.0", "no", "yes"],
        pd.array([1, 0, 1, 0, 1], "Int64"),
        pd.array([True, False, True, False, True], "boolean"),
        pd.Categorical(["1", "0", "1", "0", "1"]),
    ],
    ids=str,
)
def test_labels_of_any_form_are_the_same(table, label):
    log = tables.read(table(frame(label=label)))
    assert log.label.tolist() == [1, 0, 1, 1, 0] and log.label.dtype == np.float32


def test_rows_of_a_request_share_a_number(table):
    log = tables.read(table(frame(r=["r1", "r2", "r0", "r1", "r2"])), request="r")
    assert log.timestamp.tolist() == [10, 20, 20, 30, 30]
    r0, r2, again, r1, same = log.request.tolist()
    assert r2 == again and r1 == same and len({r0, r1, r2}) == 3
    assert tables.read(frame()).request is None


def test_a_request_of_two_users_is_named(table):
    data = table(frame(r=[0, 0, 1, 2, 3]))
    message = (
        "column 'r', row 1: .*another user's too; mend, if users count theirs apart"
    )
    with pytest.raises(ValueError, match=message):
        tables.read(data, request="r")


@pytest.mark.filterwarnings("ignore:.*every label is 0")
def test_a_log_says_which_rows_become_events(table):
    data = table(frame(seen=["no", "yes", "yes", "yes", "no"]))
    for events, kept in (
        ("all", None),
        ("positive", [True, False, True, True, False]),
        ("seen", [True, True, False, False, True]),
    ):
        log = tables.read(data, events=events)
        assert (log.event if kept is None else log.event.tolist()) == kept
    # At 30, ann has been shown 9, at 10; bob's rows at 20 are no past of each other.
    lengths = Histories.from_log(tables.read(data, events="seen")).lengths(np.arange(5))
    assert lengths.tolist() == [0, 0, 0, 1, 1]
    lengths = Histories.from_log(tables.read(frame(label=0), events="positive"))
    assert lengths.lengths(np.arange(5)).tolist() == [0] * 5


def test_repeated_rows_are_counted_told_and_kept(table):
    twice = pd.concat([frame(), frame()[2:4]])
    message = "2 rows repeat another row, the first of them row 5; they are kept"
    with pytest.warns(UserWarning, match=message) as told:
        log = tables.read(table(twice))
    assert len(log) == 7 and told[0].filename == __file__


def test_rows_that_differ_within_a_second_are_no_repeats(recwarn):
    close = frame(timestamp=[1_700_000_000_000 + k for k in range(5)], item=7)
    tables.read(close.assign(user=["ann", "ann", "ann", "ann", "bob"], label=1))
    assert not any("repeat" in str(w.message) for w in recwarn)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": 1}, "every label is 1; it can be a history, but no ranker"),
        ({"label": 0}, "every label is 0; it can be a history, but no ranker"),
        ({"user": "ann"}, "all 5 rows are of one user"),
        ({"item": 7}, "all 5 rows are of one item: there is nothing to rank"),
        ({"timestamp": 7}, "all 5 rows are of one second: nobody has a history"),
    ],
)
def test_one_label_user_item_or_second_is_told_when_the_log_is_read(columns, message):
    with pytest.warns(UserWarning, match=message) as told:
        tables.read(frame(**columns))
    assert told[0].filename == __file__


def test_a_good_log_is_read_without_a_word(table, recwarn):
    items = pd.DataFrame({"item": [7, 8, 9], "price": [1.0, 2, 3]})
    tables.read(table(frame()), item_features=table(items, "items"))
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:.*repeat another row")
def test_an_index_that_repeats_is_no_matter():
    halves = frame(label=["yes", "no", "1", "0", "true"], timestamp=LOG["timestamp"])
    twice = pd.concat([halves, halves.assign(item=9)])
    log = tables.read(twice.assign(timestamp=twice["timestamp"].astype(str)))
    assert len(log) == 10 and log.label.sum() == 6
    iso = pd.to_datetime(twice["timestamp"], unit="s").astype(str).to_numpy()
    again = tables.read(twice.assign(timestamp=iso))
    assert again.timestamp.tolist() == log.timestamp.tolist()
