"""The advice in every error is followed here, and reads the right values.

An error says between backticks what mends it: an argument of `tables.read`, or code
after which `frame` is what to pass.
"""

import re
from inspect import signature

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recsys_edu.data import tables

NOON = 1_649_419_200  # 2022-04-08 12:00 UTC
GOOD = {
    "user": ["ann", "bob", "ann", "bob"],
    "item": [7, 8, 9, 7],
    "timestamp": [NOON, NOON + 60, NOON + 120, NOON + 180],
    "label": [1, 0, 0, 1],
}
SLASHED = [
    "08/04/2022 12:00",
    "08/04/2022 12:01",
    "08/04/2022 12:02",
    "08/04/2022 12:03",
]
ENGLISH = [f"Fri, 08 Apr 2022 12:0{k}:00 GMT" for k in range(4)]
PRICES = {"item": [7, 8, 9], "price": [1.0, 2.0, 3.0]}


def follow(read, given, arguments, rounds=3):
    """The log that `read(given, arguments)` reads once its advice is followed."""
    for _ in range(rounds):
        try:
            return read(given, arguments)
        except ValueError as error:
            advice = re.search(r"`([^`]+)`", str(error))
            assert advice, f"no advice in: {error}"
            scope = {"pandas": pd, "numpy": np, "tables": tables}
            scope["frame"] = given.copy() if hasattr(given, "copy") else given
            exec(advice[1], scope)
            given = scope["frame"]
            known = signature(tables.read).parameters
            arguments = arguments | {k: v for k, v in scope.items() if k in known}
    return read(given, arguments)


def followed(given, **arguments):
    with pytest.raises(ValueError, match="`"):
        tables.read(given, **arguments)
    return follow(lambda log, more: tables.read(log, **more), given, arguments)


@pytest.fixture(params=["frame", "csv", "parquet"])
def form(request, tmp_path):
    """A function: DataFrame -> the same as a DataFrame, a CSV or a Parquet file."""

    def make(frame: pd.DataFrame):
        path = tmp_path / f"table.{request.param}"
        if request.param == "frame":
            return frame
        write = frame.to_csv if request.param == "csv" else frame.to_parquet
        write(path, index=False)
        return path

    return make


def good(**columns) -> pd.DataFrame:
    return pd.DataFrame(GOOD | columns)


def assert_good(log, rows=(0, 1, 2, 3)):
    """These rows of `GOOD`, no more and no less."""
    rows = list(rows)
    for name, read in (
        ("user", log.user_ids[log.user]),
        ("item", log.item_ids[log.item]),
        ("timestamp", log.timestamp),
        ("label", log.label),
    ):
        assert read.tolist() == [GOOD[name][row] for row in rows]


@pytest.mark.filterwarnings("ignore:.*(of one user|every label)")
@pytest.mark.parametrize(
    ("columns", "arguments", "rows"),
    [
        ({"timestamp": [1000 * t for t in GOOD["timestamp"]]}, {"unit": "s"}, range(4)),
        ({}, {"unit": "ms"}, range(4)),
        ({}, {"unit": "ns"}, range(4)),
        ({"timestamp": [1000 * NOON, *GOOD["timestamp"][1:]]}, {}, range(4)),
        (
            {"timestamp": [NOON * 10**9, *(1000 * t for t in GOOD["timestamp"][1:])]},
            {},
            range(4),
        ),
        ({"timestamp": [0, *GOOD["timestamp"][1:]]}, {}, (1, 2, 3)),
        ({"timestamp": [-1, *GOOD["timestamp"][1:]]}, {}, (1, 2, 3)),
        ({"timestamp": [np.inf, *GOOD["timestamp"][1:]]}, {"unit": "s"}, (1, 2, 3)),
        ({"timestamp": [np.nan, *GOOD["timestamp"][1:]]}, {}, (1, 2, 3)),
        ({"timestamp": [*map(str, GOOD["timestamp"][:3]), "noon"]}, {}, (0, 1, 2)),
        (
            {
                "timestamp": [
                    "2022-04-08T12:00Z",
                    "2022-04-08 12:01:00",
                    "2022-04-08T12:02:00Z",
                    "noon",
                ]
            },
            {},
            (0, 1, 2),
        ),
        (
            {
                "timestamp": [
                    "1970-01-01",
                    "2022-04-08 12:01:00",
                    "2022-04-08T12:02:00Z",
                    "3000-01-01",
                ]
            },
            {},
            (1, 2),
        ),
        ({"timestamp": [t.replace("08/04", "04/08") for t in SLASHED]}, {}, range(4)),
        ({"timestamp": ENGLISH}, {}, range(4)),
        ({"timestamp": [20220408120000 + 100 * k for k in range(4)]}, {}, range(4)),
        ({"label": [5, 3, 3, 5]}, {}, range(4)),
        ({"label": [1.5, -1.5, -1.5, 1.5]}, {}, range(4)),
        ({"label": [1, -1, -1, 1]}, {}, range(4)),
        ({"label": ["1", "-1", "-1", "1"]}, {}, range(4)),
        ({"label": ["like", "dislike", "skip", "like"]}, {}, range(4)),
        ({"label": ["yes", "no", "no", "?"]}, {}, (0, 1, 2)),
        ({"label": [1, 0, 0, np.nan]}, {}, (0, 1, 2)),
        ({"user": ["ann", "bob", "ann", None]}, {}, (0, 1, 2)),
        ({"item": ["7", "8.0", "9", "7.0"]}, {}, None),
    ],
    ids=str,
)
def test_advice_about_values_of_a_log(form, columns, arguments, rows):
    log = followed(form(good(**columns)), **arguments)
    if rows is None:
        rows = range(4)
        assert log.n_items == 4 - 1
    assert_good(log, rows)


@pytest.mark.filterwarnings("ignore:.*of one second")
def test_advice_about_dates_as_numbers(form):
    log = followed(form(good(timestamp=20220408)))
    assert log.timestamp.tolist() == [NOON - 12 * 3600] * 4


def test_advice_about_times_in_float32():
    lost = good(timestamp=np.float32(GOOD["timestamp"]))
    with pytest.raises(ValueError, match=r"read them again .* as int64 or float64"):
        tables.read(lost)
    assert_good(tables.read(good(timestamp=np.float64(GOOD["timestamp"]))))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"user": "User"}, {"user": "User"}),
        ({"user": "userId"}, {"user": "userId"}),
        ({"item": "item_id"}, {"item": "item_id"}),
        ({"timestamp": "Timestamp"}, {"timestamp": "Timestamp"}),
        ({"label": "clicked"}, {"label": "clicked"}),
    ],
)
def test_advice_about_names_of_columns(form, names, expected):
    data = form(good().rename(columns=names))
    assert_good(followed(data))


def test_advice_about_ratings_instead_of_labels(form):
    ratings = good(label=[4.5, 2.0, 1.0, 5.0]).rename(columns={"label": "rating"})
    assert_good(followed(form(ratings)))


def test_advice_names_a_column_that_has_no_part_yet():
    ratings = good().rename(columns={"label": "stars"})
    with pytest.raises(ValueError, match=r"no column 'label', .*`label='stars'`"):
        tables.read(ratings[["user", "stars", "item", "timestamp"]])


def test_advice_about_a_first_line_of_data(tmp_path):
    path = tmp_path / "log.tsv"
    numbers = good(user=[1, 2, 1, 2])
    numbers.to_csv(path, index=False, header=False, sep="\t")
    columns = {name: f"column {k}" for k, name in enumerate(GOOD)}
    log = follow(lambda log, more: tables.read(log, **more), path, columns)
    assert log.user_ids[log.user].tolist() == [1, 2, 1, 2]
    assert log.timestamp.tolist() == GOOD["timestamp"]


@pytest.mark.parametrize(
    ("above", "separator"),
    [
        ("", "::"),
        ("", "  "),
        ("sep=;\n", ";"),
        ("# from the app\n", "\t"),
        ("x\n", ","),
    ],
)
def test_advice_about_a_first_line_of_one_name(tmp_path, above, separator):
    path = tmp_path / "log.csv"
    path.write_text(above + good().to_csv(index=False).replace(",", separator))
    assert_good(followed(path))


def test_advice_about_two_columns_of_one_name(tmp_path):
    twice = pd.concat([good(), good(item=0)[["item"]]], axis=1)
    assert_good(followed(twice))
    twice.to_csv(tmp_path / "log.csv", index=False)
    assert_good(followed(tmp_path / "log.csv"))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-16-be"])
def test_advice_about_encodings(tmp_path, encoding):
    path = tmp_path / "log.csv"
    good(user=["ann", "zoé", "ann", "zoé"]).to_csv(path, index=False, encoding=encoding)
    log = followed(path)
    assert log.user_ids[log.user].tolist() == ["ann", "zoé", "ann", "zoé"]


@pytest.mark.filterwarnings("ignore:.*of one user")
def test_advice_about_rows_of_another_length(tmp_path):
    path = tmp_path / "log.csv"
    lines = good().to_csv(index=False).splitlines()
    path.write_text("\n".join([lines[0], lines[1], lines[3], "bob,8,1,0,5,6"]) + "\n")
    assert_good(followed(path), (0, 2))


def test_advice_about_a_quotation_mark_that_is_not_closed(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(good(note=['"so', "a", "b", "c"]).to_csv(index=False, quoting=3))
    assert_good(followed(path))


def test_advice_about_other_files(tmp_path):
    good().to_json(tmp_path / "log.jsonl", orient="records", lines=True)
    assert_good(followed(tmp_path / "log.jsonl"))
    good().to_json(tmp_path / "log.json", orient="records")
    assert_good(followed(tmp_path / "log.json"))
    good().to_feather(tmp_path / "log.feather")
    assert_good(followed(tmp_path / "log.feather"))
    good().to_csv(tmp_path / "log.zip", index=False)
    assert_good(followed(tmp_path / "log.zip"))


def test_advice_about_other_tables():
    assert_good(followed(GOOD))
    assert_good(followed(pa.Table.from_pandas(good())))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1.5, 2.5, 1.5, 2.5], ["1.5", "2.5", "1.5", "2.5"]),
        ([b"ann", b"bob", b"ann", b"bob"], ["ann", "bob", "ann", "bob"]),
        ([True, False, True, False], ["True", "False", "True", "False"]),
    ],
)
def test_advice_about_ids(ids, expected):
    log = followed(good(user=ids))
    assert log.user_ids[log.user].tolist() == expected


def test_advice_about_ids_that_lost_digits_as_floats(tmp_path):
    path = tmp_path / "log.csv"
    big = [9_007_199_254_740_993, 5, 9_007_199_254_740_993, 5]
    good(user=big).to_csv(path, index=False)
    lost = pd.read_csv(path, dtype={"user": float})
    with pytest.raises(ValueError, match="pass the path") as error:
        tables.read(lost)
    exec(re.search(r"`([^`]+)`", str(error.value))[1], scope := {})
    for given in (pd.read_csv(path, dtype=scope["dtype"]), path):
        log = tables.read(given)
        assert log.user_ids[log.user].tolist() == big


def test_advice_about_a_file_goes_by_how_it_was_read(tmp_path):
    path = tmp_path / "log.csv"
    log = good(user=["zoé", "07", "zoé", "07"], act=["None", "buy", "buy", "None"])
    log.assign(label=[5, 1, 1, 5]).to_csv(path, index=False, encoding="latin-1")
    log = followed(path, action="act", encoding="latin-1")
    assert log.user_ids[log.user].tolist() == ["zoé", "07", "zoé", "07"]
    assert [log.actions[a] for a in log.action] == ["None", "buy", "buy", "None"]
    assert log.label.tolist() == [1, 0, 0, 1]


def test_advice_about_requests_that_users_count_apart(form):
    log = followed(form(good(r=[1, 1, 1, 1])), request="r")
    first, second, third, fourth = log.request.tolist()
    assert first == third != second == fourth


def test_advice_about_actions_of_several_types():
    log = followed(good(act=["buy", 1, 2, "buy"]), action="act")
    assert log.actions == ("1", "2", "buy") and log.action.tolist() == [2, 0, 1, 2]


def prices(films) -> list[float]:
    """Features of items 7, 8, 9 once advice about their table is followed."""

    def read(table, more):
        return tables.read(good(), item_features=table, **more)

    with pytest.raises(ValueError, match="`"):
        read(films, {})
    return follow(read, films, {}).items


@pytest.mark.parametrize(
    "columns",
    [
        {"item": [7, 8, 9, 9], "price": [1.0, 2.0, 3.0, 4.0]},
        {"film": [7, 8, 9], "price": [1.0, 2.0, 3.0]},
        {"item": [7, 8, 9, np.nan], "price": [1.0, 2.0, 3.0, 4.0]},
        {"item": [7, 8, 9], "price": ["1,0", "2,0", "3,0"]},
        {"item": [7, 8, 9, 10], "price": [1.0, 2.0, 3.0, np.inf]},
    ],
)
def test_advice_about_a_table_of_features(form, columns):
    items = prices(form(pd.DataFrame(columns)))
    assert items.ids.tolist() == [7, 8, 9] and items.dense_names == ("price",)
    assert items.dense[:, 0] == pytest.approx([-np.sqrt(1.5), 0, np.sqrt(1.5)])


def test_advice_about_a_feature_called_as_the_id(form):
    items = prices(form(pd.DataFrame({"item": [7, 8, 9], "item_id": [1.0, 2.0, 3.0]})))
    assert items.dense_names == ("their_item_id",)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["['b', 'a']", "[]", "['a']"], {"bag": [[2, 1], [0, 0], [1, 0]]}),
        (["[3, 1]", "[1]", "[2]"], {"bag": [[3, 1], [1, 0], [2, 0]]}),
    ],
)
def test_advice_about_lists_written_as_text(form, column, expected):
    items = prices(form(pd.DataFrame({"item": [7, 8, 9], "bag": column})))
    assert items.sparse["bag"].tolist() == expected["bag"]


def test_advice_about_vectors_written_as_text(form):
    vectors = ["[1.  10.]", "[2. 20.]", "[3. 30.]"]
    items = prices(form(pd.DataFrame({"item": [7, 8, 9], "it": vectors})))
    assert items.dense_names == ("it.0", "it.1")
    assert (np.diff(items.dense, axis=0) > 1).all()


@pytest.mark.parametrize(
    "column",
    [
        [[1.0, 2.0], [1.0], [3.0]],
        [[{"a": 1}], [], []],
    ],
)
def test_advice_to_leave_a_column_out(column):
    items = prices(pd.DataFrame(PRICES | {"it": pd.Series(column, dtype=object)}))
    assert items.dense_names == ("price",) and list(items.sparse) == ["item_id"]


@pytest.mark.parametrize("column", [["x", 1, 2], [{"a": 1}, {"a": 2}, {"a": 1}]])
def test_advice_to_read_a_column_as_text(column):
    items = prices(pd.DataFrame(PRICES | {"it": pd.Series(column, dtype=object)}))
    assert items.cardinality["it"] == 1 + len({str(v) for v in column})


def test_advice_to_drop_repeated_rows(form):
    data = form(pd.concat([good(), good()[:2]]).assign(page=range(6)))
    with pytest.warns(UserWarning, match="2 rows repeat") as told:
        tables.read(data)
    scope = {"tables": tables, "frame": data}
    exec(re.search(r"`([^`]+)`", str(told[0].message))[1], scope)
    assert_good(tables.read(scope["frame"]))
