"""MovieLens-100K: two sources, one log; and the real data."""

import dataclasses

import numpy as np
import pytest

from recsys_edu.data import Histories, movielens, split_by_time
from recsys_edu.data.movielens import ml_100k

PEOPLE = [(1, 24, "M", "technician"), (2, 53, "F", "none"), (3, 17, "F", "student")]
FILMS = [  # id, GroupLens' title, RecBole's title and year, genres
    (1, "Toy Story (1995)", "Toy Story", "1995", ["Animation", "Comedy"]),
    (2, "Misérables, Les (1995)", "Misérables, Les", "1995", ["Drama", "Musical"]),
    (3, "unknown", "unkonwn", "unkonwn", []),
    (4, "Land (1931) (1994) (V)", "Land (1931) (1994)", "V", ["Sci-Fi"]),
    (5, '"M" of C (1931) ', '"M" of C', "1931", ["Film-Noir"]),
]
RATINGS = [
    (2, 1, 3, 881250949),
    (1, 3, 4, 881250900),
    (3, 2, 5, 881250949),
    (2, 5, 1, 881250949),
    (2, 4, 2, 874724710),
]


def lines(rows, separator: str) -> str:
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def wheel() -> dict[str, bytes]:
    """The small data set as RecBole's wheel lays it out."""
    films = [
        (number, title, year, " ".join(genres) or "unknown")
        for number, _, title, year, genres in FILMS
    ]
    people = [(*person, "01002") for person in PEOPLE]
    inter = [("user_id:token", "item_id:token", "rating:float", "timestamp:float")]
    user = [("user_id:token", "age", "gender", "occupation", "zip_code")]
    item = [("item_id:token", "movie_title", "release_year", "class")]
    tables = {"inter": inter + RATINGS, "user": user + people, "item": item + films}
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    return {
        f"{folder}.{kind}": lines(rows, "\t").encode() for kind, rows in tables.items()
    }


def archive() -> dict[str, bytes]:
    """The same as GroupLens' archive lays it out."""
    films = []
    for number, title, _, _, genres in FILMS:
        flags = [int(genre in genres) for genre in movielens.GENRES]
        films.append((number, title, "01-Jan-1995", "", "url", int(not genres), *flags))
    people = [(*person, "T8H1N") for person in PEOPLE]
    return {
        "../../evil.txt": b"nothing of this archive is written to disk",
        "ml-100k/u.data": lines(RATINGS, "\t").encode(),
        "ml-100k/u.user": lines(people, "|").encode(),
        "ml-100k/u.item": lines(films, "|").encode("latin-1"),
    }


@pytest.fixture
def small_sources(cache, server, zipped, monkeypatch):
    """Both sources, served here with the small data set."""
    for name, file, members in (
        ("WHEEL", "ml.whl", wheel()),
        ("ARCHIVE", "ml.zip", archive()),
    ):
        monkeypatch.setattr(ml_100k, name, server.source(file, zipped(members)))
    return server


def assert_same(one, other) -> None:
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(a):
            assert_same(a, b)
        elif isinstance(a, dict):
            assert list(a) == list(b)
            for name in a:
                if dataclasses.is_dataclass(a[name]):
                    assert_same(a[name], b[name])
                else:
                    assert np.array_equal(a[name], b[name])
        else:
            assert np.array_equal(a, b), field.name


def test_both_sources_give_the_same_log(small_sources, cache):
    from_wheel = movielens.load_100k()
    assert from_wheel.n_items == 5
    (cache / "ml.whl").unlink()
    del small_sources.files["ml.whl"]
    from_archive = movielens.load_100k()
    assert (cache / "ml.zip").exists()
    assert_same(from_wheel, from_archive)


def test_a_rating_becomes_an_impression(small_sources):
    log = movielens.load_100k()
    # Sorted by time; the three of one second keep the order of the file.
    assert log.user_ids[log.user].tolist() == [2, 1, 2, 3, 2]
    assert log.item_ids[log.item].tolist() == [4, 3, 1, 2, 5]
    assert log.label.tolist() == [0, 1, 0, 1, 0]
    assert log.action.tolist() == [1, 3, 2, 4, 0]
    # User 2 came twice, months apart; the second time two films were judged at once.
    assert log.request.tolist() == [1, 0, 2, 3, 2]
    assert Histories.from_log(log).lengths(np.arange(5)).tolist() == [0, 0, 1, 0, 1]


def test_features_and_what_is_missing_of_them(small_sources):
    log = movielens.load_100k()
    users, items = log.users, log.items
    assert log.item_titles.tolist()[2:] == [
        "unknown",
        "Land (1931) (1994) (V)",
        '"M" of C (1931)',
    ]
    assert users.sparse["user_id"].tolist() == [1, 2, 3]
    assert users.sparse["age_group"].tolist() == [2, 6, 1]
    assert users.sparse["gender"].tolist() == [2, 1, 1]
    assert users.sparse["occupation"].tolist() == [3, 1, 2]  # "none" is an occupation
    assert items.sparse["release_period"].tolist() == [9, 9, 0, 8, 1]
    genres = [
        [movielens.GENRES[g - 1] for g in row if g] for row in items.sparse["genres"]
    ]
    assert genres == [genres for *_, genres in FILMS]
    assert items.dense[2, 0] == 0
    assert items.dense[0, 0] > items.dense[3, 0] > items.dense[4, 0]


def test_nothing_is_extracted(small_sources, cache, tmp_path):
    del small_sources.files["ml.whl"]
    movielens.load_100k()
    assert not list(tmp_path.rglob("evil.txt"))
    assert {path.name for path in cache.iterdir()} <= {
        "ml.zip",
        ".ml.zip.lock",
        ".ml.whl.lock",
    }


def test_a_warm_cache_needs_no_network(small_sources):
    movielens.load_100k()
    small_sources.close()
    assert len(movielens.load_100k()) == 5
    assert len(small_sources.ranges) == 1


def test_the_real_data_set():
    log = movielens.load_100k()
    assert (len(log), log.n_users, log.n_items) == (100_000, 943, 1_682)
    first, last = log.timestamp[[0, -1]].astype("M8[s]").astype("M8[D]").astype(str)
    assert (first, last) == ("1997-09-20", "1998-04-22")
    assert np.bincount(log.action).tolist() == [6110, 11370, 27145, 34174, 21201]
    assert log.label.sum() == 34174 + 21201
    assert len(np.unique(log.request)) == 2_793
    assert log.item_titles[log.item_index([242])].tolist() == ["Kolya (1996)"]
    assert log.items.cardinality["genres"] == 19
    assert (log.items.sparse["release_period"] == 0).sum() == 1
    # By global time, most of tomorrow's impressions are of users unseen in training.
    split = split_by_time(log)
    new = ~np.isin(log.user[split.test], log.user[split.train])
    assert new.mean() > 0.8


def test_real_histories_equal_a_plain_loop():
    log = movielens.load_100k()
    histories = Histories.from_log(log)
    rows = np.random.default_rng(0).choice(len(log), 200, replace=False)
    for row in rows:
        same = np.flatnonzero(log.user == log.user[row])
        before = same[log.timestamp[same] < log.timestamp[row]]
        window = slice(histories.start[row], histories.end[row])
        assert histories.item[window].tolist() == log.item[before].tolist()
