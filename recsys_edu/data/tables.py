"""Your own log: a CSV file, a Parquet file or a DataFrame becomes an InteractionLog.

A log needs four columns: who, what, when (seconds or milliseconds since 1970, UTC) and
a label of 0 or 1. What the user did (`action`) and one table of features each for users
and items are optional. Rows may come in any order, and twice.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from recsys_edu.data.features import Features
from recsys_edu.data.interactions import LAST_SECOND, InteractionLog

Table = str | Path | pd.DataFrame
UNITS = {"s": 1, "ms": 1000}  # ticks a second


def read(
    log: Table,
    *,
    user: str = "user",
    item: str = "item",
    timestamp: str = "timestamp",
    label: str = "label",
    action: str | None = None,
    user_features: Table | None = None,
    item_features: Table | None = None,
    unit: str = "s",
) -> InteractionLog:
    """The log in a CSV file, a Parquet file or a DataFrame.

    Ids are integers or text; "007" and "7" are two ids. Users and items are those of
    the log and of the feature tables, sorted by id: an item that was never shown can
    still be a candidate. One without a row of features gets a row of unknowns.

    Args:
        log: the table of impressions.
        user, item, timestamp, label, action: what its columns are called. Without
            `action`, the action is the label.
        user_features: a table with the column `user`, one row a user. Numbers become
            dense features, standardised (missing = the mean); text, categories and
            booleans become sparse ones (missing = 0, unknown). Cast codes to text.
        item_features: the same for items, with the column `item`.
        unit: "s" or "ms", what timestamps count. History goes by whole seconds; rows
            within a second keep their order.

    Raises:
        ValueError: a column that is missing, or a value that cannot be used; names the
            file, the column, the row (0 is the first below the header) and the mend.
    """
    if unit not in UNITS:
        raise ValueError(f"unit {unit!r} is none of {list(UNITS)}")
    impressions = Sheet.open(log, text=(user, item))
    time = impressions.numbers(timestamp)
    _refuse_times(impressions, timestamp, time, unit)
    labels = impressions.numbers(label)
    hint = "a label is 0 or 1: threshold it first"
    impressions.refuse(~np.isin(labels, (0, 1)), label, hint)
    if action is None:
        actions, values = labels.astype(np.int64), (0, 1)
    else:
        actions, known = pd.factorize(impressions.column(action), sort=True)
        values = tuple(known.tolist())
    user_row, users = _entities(impressions, user, user_features, "user_id")
    item_row, items = _entities(impressions, item, item_features, "item_id")
    # Sort by the time as given: whole seconds would lose the order of milliseconds.
    order = np.argsort(time, kind="stable")
    return InteractionLog.from_unsorted(
        user=user_row[order],
        item=item_row[order],
        timestamp=(time[order] // UNITS[unit]).astype(np.int64),
        label=labels[order].astype(np.float32),
        action=actions[order].astype(np.int64),
        users=users,
        items=items,
        item_titles=None,
        actions=values,
        name=impressions.name,
    )


class Sheet:
    """A table, and what to call it in errors."""

    def __init__(self, frame: pd.DataFrame, name: str) -> None:
        if frame.empty:
            raise ValueError(f"{name} has no rows")
        self.frame, self.name = frame, name

    @classmethod
    def open(cls, table: Table, text: tuple[str, ...]) -> "Sheet":
        """Read a table; ids in a CSV file (columns `text`) stay as they are written."""
        if isinstance(table, pd.DataFrame):
            return cls(table, "the DataFrame")
        path = Path(table)
        try:
            if path.suffix == ".csv":
                frame = pd.read_csv(path, dtype=dict.fromkeys(text, str))
            elif path.suffix == ".parquet":
                frame = pd.read_parquet(path)
            else:
                raise ValueError("expected a .csv or a .parquet file")
        except ValueError as error:  # what both parsers raise over a damaged file
            raise ValueError(f"{path} cannot be read: {error}") from error
        return cls(frame, str(path))

    def column(self, name: str) -> pd.Series:
        """The column, which must be there and have no gap."""
        if name not in self.frame:
            raise ValueError(
                f"{self.name} has no column {name!r}, only {list(self.frame)}: "
                "rename one, or say what yours is called"
            )
        column = self.frame[name]
        self.refuse(column.isna(), name, "fill in the missing value, or drop the row")
        return column

    def numbers(self, name: str) -> np.ndarray:
        """The column [n] as float64, exact for integers below 2^53."""
        column = self.column(name)
        if pd.api.types.is_datetime64_any_dtype(column):
            raise ValueError(
                f"{self.name}, column {name!r} holds dates: make them seconds with "
                "(dates - pandas.Timestamp(0)) // pandas.Timedelta('1s')"
            )
        numbers = pd.to_numeric(column, errors="coerce")
        self.refuse(numbers.isna(), name, "this is not a number")
        return numbers.to_numpy(dtype=np.float64)

    def ids(self, name: str) -> pd.Index:
        """The column of ids [n] as text, by which two tables are matched."""
        column = self.column(name)
        if pd.api.types.is_float_dtype(column) or pd.api.types.is_bool_dtype(column):
            raise ValueError(
                f"{self.name}, column {name!r}: ids of type {column.dtype}; "
                "cast them to integers or to text"
            )
        return pd.Index(column.astype(str))

    def refuse(self, bad: pd.Series | np.ndarray, column: str, hint: str) -> None:
        """Raise over the first row where `bad` [n] holds."""
        if np.any(bad):
            row = int(np.argmax(bad))
            value = self.frame[column].iloc[row]
            value = value.item() if isinstance(value, np.generic) else value
            raise ValueError(
                f"{self.name}, column {column!r}, row {row}: {value!r}; {hint} "
                f"({np.sum(bad)} such rows)"
            )


def _refuse_times(sheet: Sheet, column: str, time: np.ndarray, unit: str) -> None:
    seconds = time / UNITS[unit]
    hint = f"{unit} since 1970 must lie before 2100"
    if unit == "s":
        hint += "; if these are milliseconds, say unit='ms'"
    sheet.refuse((seconds < 0) | (seconds >= LAST_SECOND), column, hint)
    if unit == "ms":
        # Any date up to 2100, in seconds, read as milliseconds is before 18 Feb 1970.
        hint = "read as ms, the whole log is of early 1970; for seconds say unit='s'"
        sheet.refuse(np.full(len(time), time.max() < LAST_SECOND), column, hint)


def _entities(
    log: Sheet, key: str, table: Table | None, id_feature: str
) -> tuple[np.ndarray, Features]:
    """The log's users or items: each row's index [E], and their features."""
    shown = log.ids(key)
    if table is None:
        known = pd.DataFrame(index=shown[:0])
    else:
        sheet = Sheet.open(table, text=(key,))
        ids = sheet.ids(key)
        sheet.refuse(ids.duplicated(), key, "a second row for this id: keep one")
        if not shown.isin(ids).any():
            raise ValueError(
                f"{sheet.name}, column {key!r}: none of the ids of {log.name}; "
                f"here they look like {ids[0]!r}, there like {shown[0]!r}"
            )
        for name in sheet.frame.select_dtypes("number"):
            bad = sheet.frame[name].isin((np.inf, -np.inf))
            sheet.refuse(bad, name, "a feature must be finite")
        known = sheet.frame.drop(columns=key).set_index(ids)
    names = shown.union(known.index).unique()
    if names.str.fullmatch(r"0|-?[1-9]\d{0,17}").all():
        ids = np.sort(names.to_numpy(dtype=np.int64))
        names = pd.Index(ids.astype(str))
    else:
        names = names.sort_values()
        ids = names.to_numpy(dtype=str)
    return names.get_indexer(shown), _features(known, names, ids, id_feature)


def _features(
    known: pd.DataFrame, names: pd.Index, ids: np.ndarray, id_feature: str
) -> Features:
    """Features of all `names` [n]; those without a row in `known` are unknown."""
    dense, sparse = {}, {id_feature: ids}
    for name, column in known.reindex(names).items():
        if name == id_feature:
            raise ValueError(f"the name {name!r} is taken: rename this feature")
        if pd.api.types.is_any_real_numeric_dtype(column):
            dense[name] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            sparse[name] = column.tolist()
    return Features.fit(ids, dense, sparse)
