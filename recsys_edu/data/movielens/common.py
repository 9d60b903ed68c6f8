"""What the MovieLens loaders share: the log, film features, files read and checked."""

import csv
import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from recsys_edu.data.features import Features
from recsys_edu.data.interactions import LAST_SECOND, InteractionLog, sittings
from recsys_edu.data.sheet import Sheet

CITE = "cite Harper and Konstan (2015), doi.org/10.1145/2827872"
POSITIVE = 4  # a rating of 4 or more is a success
SPLIT = "\x1f"  # the unit separator of ASCII, which no title holds


def ratings_log(
    ratings: pd.DataFrame,
    films: pd.DataFrame,
    users: Features,
    items: Features,
    *,
    stars: tuple,
    name: str,
) -> InteractionLog:
    """The log of ratings [E] by known users of known films.

    Args:
        ratings: columns user, item, rating, timestamp; checked.
        films: the column title, in the order of `items`.
        users, items: in the order of their ids.
        stars: the ratings that can be given, ascending; their places are the actions.
    """
    user = np.searchsorted(users.ids, ratings["user"])
    timestamp = ratings["timestamp"].to_numpy()
    rating = ratings["rating"].to_numpy()
    return InteractionLog.from_unsorted(
        user=user,
        item=np.searchsorted(items.ids, ratings["item"]),
        timestamp=timestamp,
        label=(rating >= POSITIVE).astype(np.float32),
        action=np.searchsorted(stars, rating),
        request=sittings(user, timestamp),
        users=users,
        items=items,
        item_titles=films["title"].to_numpy(dtype=str),
        actions=stars,
        name=name,
    )


def film_features(
    films: pd.DataFrame, genres: Sequence[str], releases: Sequence[int]
) -> Features:
    """Features of films: dense release_year; sparse item_id, genres, release_period.

    Args:
        films: columns item, title ending in a year in brackets, genres (lists).
        genres: the genres in the order of their codes; others follow, sorted.
        releases: the first year of each period but the first, ascending.
    """
    year = np.array([_year(title) for title in films["title"]])
    period = np.digitize(year, releases).astype(float)
    others = {genre for bag in films["genres"] for genre in bag} - {*genres}
    return Features.fit(
        films["item"].to_numpy(),
        dense={"release_year": year},
        sparse={
            "item_id": films["item"].to_numpy(),
            "genres": films["genres"].tolist(),
            "release_period": np.where(np.isnan(year), np.nan, period),
        },
        categories={
            "genres": [*genres, *sorted(others)],
            "release_period": range(len(releases) + 1),
        },
    )


def _year(title: str) -> float:
    """The last year in brackets: "Kolya (1996)" came to the cinemas in 1997."""
    years = re.findall(r"\((\d{4})\)", title)
    return float(years[-1]) if years else np.nan


def read_table(
    place: Path,
    name: str,
    columns: Sequence[str],
    *,
    separator: str | None = None,
    encoding: str = "utf-8",
) -> Sheet:
    """The file `name` of a folder or of a zip archive, which is read in memory.

    Args:
        place: the folder, or the archive.
        columns: those that are needed; of a file without a header, all of them.
        separator: of the fields of a file without a header; None: a CSV file with one.

    Raises:
        FileNotFoundError: there is no such place, or no such file in it.
        ValueError: the archive is damaged, or the file is no such table.
    """
    label, content = _content(place, name)
    options: dict = dict(header=0)
    if separator is not None:
        # One character, because pandas has no fast reader for more.
        content = content.replace(separator.encode(), SPLIT.encode())
        options = dict(header=None, sep=SPLIT, quoting=csv.QUOTE_NONE)
        options |= dict(names=list(columns))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                io.BytesIO(content),
                encoding=encoding,
                index_col=False,  # or a field too many makes an index of the first
                keep_default_na=False,  # a film may be called "None"
                low_memory=False,  # or a column has one type a chunk
                **options,
            )
    except (ValueError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{label} cannot be read: {str(error).strip()}") from error
    if missing := [column for column in columns if column not in frame]:
        raise ValueError(f"{label} has no column {missing}, only {list(frame)}")
    return Sheet(frame[list(columns)], label)


def _content(place: Path, name: str) -> tuple[str, bytes]:
    """What to call that file in errors, and its bytes."""
    if place.is_dir():
        path = place / name
        return str(path), path.read_bytes()
    label = f"{name} in {place}"
    try:
        with zipfile.ZipFile(place) as archive:
            members = archive.namelist()
            found = [m for m in members if PurePosixPath(m).name == name]
            if len(found) == 1:
                return label, archive.read(found[0])
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{place} is no folder and no whole zip archive ({error}): get it anew"
        ) from error
    raise FileNotFoundError(f"{place} holds {len(found)} files {name}: {members[:9]}")


def integers(sheet: Sheet, column: str, hint: str) -> np.ndarray:
    """A column of whole numbers, [n] int64; raises over any other value."""
    number = _numbers(sheet, column, hint)
    sheet.refuse(~np.isfinite(number) | (number % 1 != 0), column, hint)
    return number.astype(np.int64)


def _numbers(sheet: Sheet, column: str, hint: str) -> np.ndarray:
    number = pd.to_numeric(sheet.frame[column], errors="coerce")
    sheet.refuse(number.isna(), column, hint)
    return number.to_numpy()


def ids(sheet: Sheet, column: str) -> np.ndarray:
    """A column of whole numbers [n], none of them twice."""
    values = integers(sheet, column, "an id is a whole number")
    twice = pd.Series(values).duplicated()
    sheet.refuse(twice, column, "a second row for this id: keep one")
    return values


def bags(column: Iterable[str]) -> list[list[str]]:
    """ "Comedy|Drama" -> ["Comedy", "Drama"]; "(no genres listed)" -> []."""
    none = ("", "(no genres listed)")
    return [[] if text in none else text.split("|") for text in column]


def checked_ratings(
    sheet: Sheet,
    *,
    stars: tuple,
    films: tuple[np.ndarray, str],
    people: tuple[np.ndarray, str] | None = None,
) -> pd.DataFrame:
    """Columns user, item, rating, timestamp [E] of a sheet of four such columns.

    Args:
        stars: the ratings that can be given, ascending.
        films, people: the ids that are known, and the file that they stand in.

    Raises:
        ValueError: a value that cannot be used; names the file, the row and the column.
    """
    user, item, rating, timestamp = sheet.frame
    columns = {
        "user": integers(sheet, user, "an id is a whole number"),
        "item": integers(sheet, item, "an id is a whole number"),
        "rating": _numbers(sheet, rating, f"a rating is one of {stars}"),
    }
    wrong = ~np.isin(columns["rating"], stars)
    sheet.refuse(wrong, rating, f"a rating is one of {stars}")
    hint = "this is not a time in seconds since 1970"
    time = columns["timestamp"] = integers(sheet, timestamp, hint)
    sheet.refuse((time < 0) | (time >= LAST_SECOND), timestamp, hint)
    for key, name, known in (("item", item, films), ("user", user, people)):
        if known is not None:
            there, file = known
            strange = ~np.isin(columns[key], there)
            sheet.refuse(strange, name, f"there is no such id in {file}")
    return pd.DataFrame(columns)
