"""MovieLens-1M: 1,000,209 ratings, 6,040 people, 3,883 films.

The data are GroupLens' (University of Minnesota). They may be used for research, not
redistributed without permission and not for revenue; cite F. M. Harper and J. A.
Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from recsys_edu.data.features import Features
from recsys_edu.data.fetch import Source, fetch
from recsys_edu.data.interactions import InteractionLog
from recsys_edu.data.movielens.common import (
    CITE,
    bags,
    checked_ratings,
    film_features,
    ids,
    integers,
    ratings_log,
    read_table,
)
from recsys_edu.data.movielens.ml_100k import AGES, GENRES, RELEASES
from recsys_edu.data.sheet import Sheet

TERMS = (
    f"MovieLens-1M is GroupLens' data, for research, not to be redistributed; {CITE}"
)
ARCHIVE = Source(
    name="ml-1m.zip",
    known_hash="md5:c4d9eecfca2ab87c1945afe126590906",
    origin="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
    terms=TERMS,
)
STARS = (1, 2, 3, 4, 5)


def load_1m(folder: str | Path | None = None) -> InteractionLog:
    """MovieLens-1M: a rating is an impression, a rating of 4 or 5 a success.

    Label: rating >= 4. Action: rating - 1. A request is a sitting. User features:
    sparse user_id, age_group, gender, occupation (a code of the data set's README).
    Item features: dense release_year; sparse item_id, genres (a bag) and
    release_period, as in `load_100k`. Films that nobody rated are items too.

    Args:
        folder: where ratings.dat, users.dat and movies.dat lie, or a zip archive of
            them. None fetches GroupLens' archive into the cache.

    Raises:
        FileNotFoundError: `folder` lacks a file; names it.
        ValueError: a damaged file or a value that cannot be used; names the file, the
            column and the row (0 is the first line, for these files have no header).
        OSError: the archive could not be had; says what went wrong.
    """
    place = fetch(ARCHIVE) if folder is None else Path(folder)
    movies = _read(place, "movies.dat", "MovieID", "Title", "Genres")
    columns = ("UserID", "Gender", "Age", "Occupation", "Zip-code")
    people = _read(place, "users.dat", *columns)
    films, users = _films(movies), _user_features(people)
    columns = ("UserID", "MovieID", "Rating", "Timestamp")
    ratings = checked_ratings(
        _read(place, "ratings.dat", *columns),
        stars=STARS,
        films=(films["item"].to_numpy(), movies.name),
        people=(users.ids, people.name),
    )
    return ratings_log(
        ratings,
        films,
        users,
        film_features(films, GENRES, (*RELEASES, 1999, 2000)),
        stars=STARS,
        name="MovieLens-1M",
    )


def _read(place: Path, name: str, *columns: str) -> Sheet:
    return read_table(place, name, columns, separator="::", encoding="latin-1")


def _films(sheet: Sheet) -> pd.DataFrame:
    films = pd.DataFrame(
        {
            "item": ids(sheet, "MovieID"),
            "title": sheet.frame["Title"].astype(str).str.strip(),
            "genres": bags(sheet.frame["Genres"].astype(str)),
        }
    )
    return films.sort_values("item", ignore_index=True)


def _user_features(sheet: Sheet) -> Features:
    """Users in the order of their ids; their age is known as a group of years."""
    people = ids(sheet, "UserID")
    age = integers(sheet, "Age", "an age group is given by its first year")
    order = np.argsort(people)
    frame = sheet.frame.iloc[order]
    return Features.fit(
        people[order],
        sparse={
            "user_id": people[order],
            "age_group": np.digitize(age[order], AGES),
            "gender": frame["Gender"].tolist(),
            "occupation": frame["Occupation"].tolist(),
        },
        categories={"age_group": range(len(AGES) + 1)},
    )
