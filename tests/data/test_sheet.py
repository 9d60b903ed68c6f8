"""Files as people have them: each is read, or the error says what it is."""

import bz2
import gzip
import lzma

import numpy as np
import pandas as pd
import pytest

from recsys_edu.data import tables

ROWS = [
    ("user", "item", "timestamp", "label", "note"),
    ("ann", "7", "10", "1", "good; or | so"),
    ("zoé", "8", "20", "0", "naïve"),
    ("ann", "9", "30", "0", ""),
]


def text(separator=",", end="\n"):
    quoted = [[f'"{v}"' if separator in v else v for v in row] for row in ROWS]
    return end.join(separator.join(row) for row in quoted) + end


def assert_read(log):
    """`log` is that of `ROWS`."""
    assert log.user_ids[log.user].tolist() == ["ann", "zoé", "ann"]
    assert log.item_ids[log.item].tolist() == [7, 8, 9]
    assert log.timestamp.tolist() == [10, 20, 30]
    assert log.label.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("name", "separator"),
    [
        ("log.csv", ","),
        ("log.CSV", ","),
        ("log.csv", ";"),
        ("log.csv", "\t"),
        ("log.csv", "|"),
        ("log.tsv", "\t"),
        ("log.txt", "|"),
        ("log.TXT", ";"),
        ("log", ","),
        ("part-00000", "\t"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_any_separator_under_any_name(tmp_path, name, separator, end):
    (tmp_path / name).write_bytes(text(separator, end).encode())
    assert_read(tables.read(tmp_path / name))


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le with a mark"]
)
def test_any_encoding_that_says_which_it_is(tmp_path, encoding):
    mark = "\ufeff" * encoding.endswith("mark")
    data = (mark + text(";")).encode(encoding.split()[0])
    (tmp_path / "log.csv").write_bytes(data)
    assert_read(tables.read(tmp_path / "log.csv"))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be"])
def test_an_encoding_that_does_not_say_is_guessed_in_the_error(tmp_path, encoding):
    path = tmp_path / "log.csv"
    path.write_bytes(text().encode(encoding))
    guess = encoding if encoding.startswith("utf") else "latin-1"
    with pytest.raises(ValueError, match=f"log.csv .* `encoding='{guess}'`"):
        tables.read(path)
    assert_read(tables.read(path, encoding=guess))
    assert_read(tables.read(path, encoding=encoding))


def test_utf_16_without_a_mark_or_an_accent(tmp_path):
    path = tmp_path / "log.csv"  # every byte of it is good UTF-8, half of them are 0
    path.write_bytes(text().replace("é", "e").replace("ï", "i").encode("utf-16-le"))
    assert tables.read(path, encoding="utf-16-le").user_ids.tolist() == ["ann", "zoe"]


def test_a_latin_log_reads_utf_8_features_beside_it(tmp_path):
    (tmp_path / "log.csv").write_bytes(text().encode("latin-1"))
    (tmp_path / "users.csv").write_text("user,city\nann,Zürich\nzoé,Genève\n")
    log = tables.read(
        tmp_path / "log.csv",
        user_features=tmp_path / "users.csv",
        encoding="latin-1",
    )
    assert log.users.coding.sparse["city"].values.tolist() == ["Genève", "Zürich"]


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".GZ", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        ("", gzip.compress),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_compressed_file(tmp_path, suffix, compress, encoding):
    path = tmp_path / f"log.csv{suffix}"
    path.write_bytes(compress(text("\t").encode(encoding)))
    assert_read(tables.read(path))


@pytest.mark.parametrize("name", ["log.parquet", "log.pq", "log.PARQUET", "log.csv"])
def test_a_parquet_file_under_any_name(tmp_path, name):
    frame = pd.DataFrame(ROWS[1:], columns=ROWS[0])
    frame.to_parquet(tmp_path / name)
    assert_read(tables.read(tmp_path / name))


def test_a_folder_of_parquet_files(tmp_path):
    frame = pd.DataFrame(ROWS[1:], columns=ROWS[0])
    (tmp_path / "log.parquet").mkdir()
    for k in range(3):
        frame[k : k + 1].to_parquet(tmp_path / "log.parquet" / f"part-{k}.parquet")
    assert_read(tables.read(tmp_path / "log.parquet"))


def test_an_index_with_a_name_is_a_column(tmp_path):
    frame = pd.DataFrame(ROWS[1:], columns=ROWS[0]).set_index(["user", "item"])
    assert_read(tables.read(frame))
    frame.to_parquet(tmp_path / "log.parquet")
    assert_read(tables.read(tmp_path / "log.parquet"))


def test_a_table_of_ids_alone_adds_candidates(tmp_path):
    (tmp_path / "items.csv").write_text("item\n7\n8\n9\n10\n")
    frame = pd.DataFrame(ROWS[1:], columns=ROWS[0])
    log = tables.read(frame, item_features=tmp_path / "items.csv")
    assert log.item_ids.tolist() == [7, 8, 9, 10]


def test_blanks_around_separators_are_no_part_of_names_and_values(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(" user , item,timestamp , label\n01, 7, 10, 1\n2, 8, 20, 0\n")
    log = tables.read(path)
    assert log.user_ids.tolist() == ["01", "2"] and log.item_ids.tolist() == [7, 8]
    frame = pd.DataFrame({" user": [1, 2], "item ": [7, 8], "timestamp": [10, 20]})
    log = tables.read(frame.assign(label=[1, 0]), item="item")
    assert log.item_ids.tolist() == [7, 8]


def test_separators_at_the_ends_of_lines_shift_no_column(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp,label\n1,7,10,1,\n2,8,20,0,\n")
    log = tables.read(path)
    assert log.user_ids.tolist() == [1, 2] and log.timestamp.tolist() == [10, 20]
    path.write_text("user,item,timestamp,label\n1,7,10,1,5\n2,8,20,0,6\n")
    with pytest.raises(ValueError, match="more fields than the header has names"):
        tables.read(path)


def test_the_index_that_pandas_writes_is_no_feature(tmp_path):
    items = pd.DataFrame({"item": [7, 8, 9], "price": [1.0, 2, 3]})
    items.to_csv(tmp_path / "items.csv")
    frame = pd.DataFrame(ROWS[1:], columns=ROWS[0])
    for table in (tmp_path / "items.csv", pd.read_csv(tmp_path / "items.csv")):
        log = tables.read(frame, item_features=table)
        assert log.items.dense_names == ("price",)


def test_values_spelled_like_missing_ones_are_missing_outside_ids(tmp_path):
    (tmp_path / "log.csv").write_text(text())
    (tmp_path / "users.csv").write_text("user,age,city\nann,NA,null\nzoé,30,Genève\n")
    log = tables.read(tmp_path / "log.csv", user_features=tmp_path / "users.csv")
    assert log.users.dense.tolist() == [[0], [0]]
    assert log.users.sparse["city"].tolist() == [0, 1]


def test_an_action_may_be_called_none(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp,label,act\n1,7,10,0,None\n2,8,20,1,buy\n")
    log = tables.read(path, action="act")
    assert log.actions == ("None", "buy") and log.action.tolist() == [0, 1]


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(text().encode() * 99)[:-20])
    with pytest.raises(ValueError, match=r"log\.csv\.gz cannot be read"):
        tables.read(path)


@pytest.mark.filterwarnings("ignore:.*of one user")
def test_many_mixed_rows_have_one_type_a_column(tmp_path):
    # pandas reads in chunks, each with types of its own, unless it is told not to.
    n = 600_000
    note = np.where(np.arange(n) < n - 1, "1", "one")
    frame = pd.DataFrame(dict(user=1, item=np.arange(n) % 3, timestamp=range(n)))
    frame.assign(label=np.arange(n) % 2, act=note).to_csv(tmp_path / "log.csv")
    log = tables.read(tmp_path / "log.csv", action="act")
    assert log.actions == ("1", "one")
