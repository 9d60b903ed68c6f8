"""MovieLens-1M, on small files of its format that the tests write."""

from pathlib import Path

import numpy as np
import pytest

from recsys_edu.data import movielens
from recsys_edu.data.movielens import ml_1m

FILES = {
    "movies.dat": (
        "1::Toy Story (1995)::Animation|Children's|Comedy\n"
        '3::"M" as in Misérables: 2 (1931)::Drama\n'
        "2::Jumanji (2000)::Adventure\n"
        "9::Nobody Came (1999)::Film-Noir\n"
    ),
    "users.dat": "2::M::56::16::70072\n1::F::1::10::48067-1119\n6::M::25::0::NA\n",
    "ratings.dat": (
        "1::3::5::978302109\n"
        "1::1::3::978300309\n"
        "2::2::4::978298413\n"
        "1::2::1::978298508\n"
    ),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_bytes(text.encode("latin-1"))
    return folder


def test_a_rating_becomes_an_impression(folder):
    log = movielens.load_1m(folder)
    assert log.name == "MovieLens-1M"
    assert log.user_ids.tolist() == [1, 2, 6] and log.item_ids.tolist() == [1, 2, 3, 9]
    assert log.user.tolist() == [1, 0, 0, 0]
    assert log.item_ids[log.item].tolist() == [2, 2, 1, 3]
    assert log.label.tolist() == [1, 0, 0, 1]
    assert [log.actions[action] for action in log.action] == [4, 1, 3, 5]
    # A pause of 1,801 seconds, and one of 1,800.
    assert log.request.tolist() == [2, 0, 1, 1]


def test_features(folder):
    log = movielens.load_1m(folder)
    users, items = log.users.sparse, log.items.sparse
    assert users["age_group"].tolist() == [1, 7, 3]
    assert users["gender"].tolist() == [1, 2, 2]
    assert users["occupation"].tolist() == [2, 3, 1]
    assert log.item_titles.tolist()[2] == '"M" as in Misérables: 2 (1931)'
    assert items["release_period"].tolist() == [9, 14, 1, 13]
    bags = [[movielens.GENRES[g - 1] for g in bag if g] for bag in items["genres"]]
    kinds = [["Animation", "Children's", "Comedy"], ["Adventure"], ["Drama"]]
    assert bags == [*kinds, ["Film-Noir"]]


def test_the_archive_is_fetched_and_read_in_memory(
    folder, cache, server, zipped, monkeypatch
):
    members = {f"ml-1m/{name}": t.encode("latin-1") for name, t in FILES.items()}
    source = server.source("ml-1m.zip", zipped(members))
    monkeypatch.setattr(ml_1m, "ARCHIVE", source)
    log = movielens.load_1m()
    server.close()
    assert np.array_equal(log.item, movielens.load_1m(folder).item)
    assert np.array_equal(log.item_titles, movielens.load_1m().item_titles)
    names = {path.name for path in cache.iterdir()}
    assert names == {"ml-1m.zip", ".ml-1m.zip.lock"}


def test_the_published_archive_is_asked_for():
    source = ml_1m.ARCHIVE
    assert source.origin == "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
    assert source.known_hash == "md5:c4d9eecfca2ab87c1945afe126590906"
    assert "not to be redistributed; cite Harper and Konstan" in source.terms


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("ratings.dat", "1::1::3", "1::1::3.5", "'Rating', row 1: 3.5; a rating is"),
        ("ratings.dat", "1::1::3", "1::1::", "'Rating', row 1: ''; a rating is"),
        ("ratings.dat", "1::1::3", "1::7::3", "'MovieID', row 1: 7; .*movies.dat"),
        ("ratings.dat", "1::1::3", "4::1::3", "'UserID', row 1: 4; .*users.dat"),
        ("ratings.dat", "1::1::3", "1::1::3::3", "cannot be read: .*line 2"),
        ("ratings.dat", "::", ",", "'UserID', row 0: '1,3,5,"),
        ("users.dat", "1::F::1", "1::F::young", "'Age', row 1: 'young'; an age group"),
        ("users.dat", "\n6::", "\n2::", "'UserID', row 2: 2; a second row"),
        ("movies.dat", "\n9::", "\nx::", "'MovieID', row 3: 'x'; an id is a whole"),
    ],
)
def test_a_bad_value_is_named_with_its_file(folder, name, old, new, message):
    text = (folder / name).read_text("latin-1")
    assert old in text
    changed = text.replace(old, new, -1 if new == "," else 1)
    (folder / name).write_text(changed, "latin-1")
    with pytest.raises(ValueError, match=message) as error:
        movielens.load_1m(folder)
    assert str(folder / name) in str(error.value)


def test_a_missing_file_is_named(folder):
    (folder / "users.dat").unlink()
    with pytest.raises(FileNotFoundError, match=r"users\.dat"):
        movielens.load_1m(folder)
