"""Your own log: a CSV file, a Parquet file or a DataFrame becomes an InteractionLog.

A log needs four columns: who, what, when and a label, true or false. What the user did
(`action`), which rows were shown at once (`request`) and one table of features each for
users and items are optional. Rows may come in any order, and twice.
"""

import warnings
from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from recsys_edu.data.columns import raw_features
from recsys_edu.data.features import Features
from recsys_edu.data.ids import numbered, spelled, tell_strangers
from recsys_edu.data.interactions import InteractionLog
from recsys_edu.data.sheet import Sheet, Table
from recsys_edu.data.times import UNITS, nanoseconds

TRUTH = {"1": 1, "0": 0, "true": 1, "false": 0, "yes": 1, "no": 0}


def read(
    log: Table,
    *,
    user: str = "user",
    item: str = "item",
    timestamp: str = "timestamp",
    label: str = "label",
    action: str | None = None,
    request: str | None = None,
    events: str = "all",
    user_features: Table | None = None,
    item_features: Table | None = None,
    bags: Mapping[str, str] | None = None,
    title: str | None = None,
    unit: str | None = None,
    encoding: str | None = None,
) -> InteractionLog:
    """The log in a text file, a Parquet file or a DataFrame.

    Ids are integers or text; "007" and "7" are two ids. They come back as int64 if all
    of a side fit, else all as text: a hash of 20 digits is text. Users and items are
    those of the log and of the feature tables, sorted by id: an item that was never
    shown can still be a candidate. One without a row of features gets a row of
    unknowns.

    A text file may be compressed (gz, bz2, xz) and separated by commas, semicolons,
    tabs or bars. In it, ids that spell a missing value, such as NA, are ids.

    Told by a warning, and read: rows that repeat a row, most ids without features, and
    a log of one user, one item, one label or one second.

    Args:
        log: the table of impressions.
        user, item, timestamp, label, action: what its columns are called. A label is 0
            or 1, true or false, yes or no. Without `action`, the action is the label.
        request: the column in which rows of one request agree; None if each row is a
            request of its own.
        events: which rows enter histories: "all", "positive" for those of label 1, or a
            column that says so, as a label does.
        user_features: a table with the column `user`, one row a user. Numbers become
            dense features, standardised (missing = the mean), and so do vectors of one
            length, as `name.0`, `name.1`, and dates, as days. Text, categories and
            booleans become sparse ones (missing = 0, unknown); lists become bags. Cast
            codes to text.
        item_features: the same for items, with the column `item`.
        bags: name of a feature -> what separates its values: with {"genres": "|"},
            "Action|Comedy" is a bag of two.
        title: the column of `item_features` with a name to print; it is no feature.
        unit: "s", "ms", "us" or "ns", what timestamps count that are numbers; None: the
            one in which the log ends before 2100. Dates need none; without a zone they
            are UTC. History goes by whole seconds; rows within one keep their order.
        encoding: of text files that are not UTF-8 and do not begin with a mark.

    Raises:
        ValueError: a column that is missing, or a value that cannot be used; names the
            file, the column, the row (0 is the first below the header) and the mend.

    Example:
        >>> seen = {"user": ["ann", "bob", "ann"], "item": [7, 7, 9]}
        >>> seen |= {"timestamp": ["2024-05-01", "2024-05-02", "2024-05-03"]}
        >>> log = read(pd.DataFrame(seen | {"label": [True, False, True]}))
        >>> log.item_ids[log.item].tolist(), log.label.tolist()
        ([7, 7, 9], [1.0, 0.0, 1.0])
    """
    if unit is not None and unit not in UNITS:
        raise ValueError(f"unit {unit!r} is none of {list(UNITS)}")
    if title is not None and item_features is None:
        raise ValueError(f"title={title!r} is a column of item_features: give that too")
    spoken = None if events in ("all", "positive") else events
    text = tuple(name for name in (user, item, request) if name is not None)
    words = () if action is None else (action,)
    sheet = Sheet.open(log, text, words, encoding)
    columns = dict(user=user, item=item, timestamp=timestamp, label=label)
    sheet.require(**columns, action=action, request=request, events=spoken)
    time = nanoseconds(sheet, timestamp, unit)
    labels = _truth(sheet, label)
    if action is None:
        actions, values = labels.astype(np.int64), (0, 1)
    else:
        actions, known = pd.factorize(_values(sheet, action), sort=True)
        values = tuple(known.tolist())
    entities = partial(_entities, sheet, bags=bags or {}, encoding=encoding)
    user_row, users, _ = entities(user, user_features, "user", None)
    item_row, items, titles = entities(item, item_features, "item", title)
    if unknown := set(bags or ()) - {*users.sparse, *items.sparse}:
        there = [*users.sparse, *items.sparse]
        raise ValueError(f"bags={bags}: no such feature {unknown}, only {there}")
    shared = None if request is None else _requests(sheet, request, user, user_row)
    event = {"all": None, "positive": labels}.get(events)
    if spoken is not None:
        event = _truth(sheet, spoken)
    # Sort by the time as given: whole seconds would lose the order of milliseconds.
    order = np.argsort(time, kind="stable")
    read_log = InteractionLog.from_unsorted(
        user=user_row[order],
        item=item_row[order],
        timestamp=time[order] // 10**9,
        label=labels[order].astype(np.float32),
        action=actions[order].astype(np.int64),
        request=None if shared is None else shared[order],
        event=None if event is None else event[order],
        users=users,
        items=items,
        item_titles=titles,
        actions=values,
        name=sheet.name,
    )
    said = {user: user_row, item: item_row, timestamp: time, label: labels}
    _tell_repeats(sheet, said | {action or label: actions})
    _tell_of_one(read_log)
    return read_log


def frame(
    path: Table, *ids: str, words: tuple[str, ...] = (), encoding: str | None = None
) -> pd.DataFrame:
    """A table as `read` sees it, to be mended and read again.

    Args:
        path: the file.
        ids: columns of a text file that are to stay as they are written.
        words: columns where `NA`, `None` and the like are values too.
        encoding: see `read`.
    """
    return Sheet.open(path, ids, words, encoding).frame


def _truth(sheet: Sheet, column: str) -> np.ndarray:
    """A column [E] of true and false, as bool."""
    values = sheet.column(column)
    if pd.api.types.is_bool_dtype(values):
        return values.to_numpy(dtype=bool)
    it = f"frame[{column!r}]"
    number = pd.to_numeric(values, errors="coerce")
    hint = "a label is 0 or 1, true or false, yes or no; mend, "
    if number.notna().all():
        middle = (number.min() + number.max()) / 2
        line = f"{it} = pandas.to_numeric({it}) > {middle:g}"
    else:
        number = values.astype(str).str.strip().str.lower().map(TRUTH).fillna(number)
        odd = values[number.isna()].iloc[:1].tolist()
        line = f"{it} = {it}.isin({odd})"
    if number.isna().any() and number.notna().any():
        hint += "or leave out such rows: " + sheet.code(
            f"frame = frame[~{it}.isin({odd})]"
        )
    else:
        hint += f"if this is what counts as a success: {sheet.code(line)}"
    sheet.refuse(~number.isin((0, 1)), column, hint)
    return number.to_numpy(dtype=bool)


def _values(sheet: Sheet, column: str) -> pd.Series:
    """A column of categories [E] that can be sorted."""
    values = sheet.column(column)
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    if pd.api.types.infer_dtype(values) in ("mixed", "mixed-integer", "bytes"):
        mend = sheet.code(f"frame[{column!r}] = frame[{column!r}].astype(str)")
        hint = f"values of several types have no order; mend: {mend}"
        sheet.refuse(np.ones(len(values), bool), column, hint)
    return values


def _requests(sheet: Sheet, column: str, user: str, user_row: np.ndarray) -> np.ndarray:
    """The number of each row's request, [E] int64: one user's each."""
    number, _ = spelled(sheet, column)
    _, first = np.unique(number, return_index=True)
    line = (
        f"frame[{column!r}] = frame[{user!r}].astype(str) + ' ' "
        f"+ frame[{column!r}].astype(str)"
    )
    hint = (
        "this request is another user's too; mend, if users count theirs apart: "
        f"{sheet.code(line)}"
    )
    sheet.refuse(user_row != user_row[first[number]], column, hint)
    return number.astype(np.int64)


def _entities(
    log: Sheet,
    key: str,
    table: Table | None,
    side: str,
    title: str | None,
    *,
    bags: Mapping[str, str],
    encoding: str | None,
) -> tuple[np.ndarray, Features, np.ndarray | None]:
    """The log's users or items: each row's index [E], their features, their titles."""
    place, shown = spelled(log, key)
    if table is None:
        names, ids = numbered(shown)
        index = names.get_indexer(shown)[place]
        return index, Features.fit(ids, {}, {f"{side}_id": ids}), None
    text = (key,) if title is None else (key, title)
    sheet = Sheet.open(table, text, (), encoding, f"the DataFrame {side}_features")
    _refuse_names(sheet, text, f"{side}_id")
    row, known = spelled(sheet, key)
    drop = sheet.code(f"frame = frame.drop_duplicates({key!r})")
    hint = f"a second row for this id; mend, keeping the first: {drop}"
    sheet.refuse(pd.Series(row).duplicated(), key, hint)
    tell_strangers(log, shown, sheet, known, key)
    names, ids = numbered(shown.union(known, sort=False))
    columns = sheet.frame.set_axis(known[row]).reindex(names)
    titles = None
    if title is not None:
        given = columns[title].convert_dtypes().astype(object)
        titles = given.where(given.notna(), names).to_numpy(dtype=str)
    dense, sparse = raw_features(sheet, columns.drop(columns=[*text]), bags)
    features = Features.fit(ids, dense, {f"{side}_id": ids} | sparse)
    return names.get_indexer(shown)[place], features, titles


def _refuse_names(sheet: Sheet, wanted: tuple[str, ...], taken: str) -> None:
    """Raises unless a table of features has its id, and each name once."""
    for name in sheet.repeated:
        sheet.once(name)
    for name in wanted:
        if name not in sheet.frame:
            yours = next(iter(sheet.frame))
            mend = sheet.code(f"frame = frame.rename(columns={{{yours!r}: {name!r}}})")
            raise ValueError(
                f"{sheet.name} has no column {name!r}, only {list(sheet.frame)}; "
                f"rename it as here: {mend}"
            )
    if taken in sheet.frame.columns.drop([*wanted]):
        line = f"frame = frame.rename(columns={{{taken!r}: 'their_{taken}'}})"
        raise ValueError(
            f"{sheet.name}: the name {taken!r} is taken; mend: {sheet.code(line)}"
        )


def _tell_repeats(sheet: Sheet, columns: dict[str, np.ndarray]) -> None:
    repeats = pd.DataFrame(columns).duplicated().to_numpy()
    if repeats.any():
        drop = sheet.code(f"frame = frame.drop_duplicates({list(columns)})")
        warnings.warn(
            f"{sheet.name}: {repeats.sum()} rows repeat another row, the first of them "
            f"row {np.argmax(repeats)}; they are kept; to drop them: {drop}",
            stacklevel=3,
        )


def _tell_of_one(log: InteractionLog) -> None:
    """Warns of what a log can be read with, but hardly be learned from."""
    if log.label.min() == log.label.max():
        warnings.warn(
            f"{log.name}: every label is {log.label[0]:.0f}; it can be a history, but "
            "no ranker learns from it: add what was shown and not taken, or draw it",
            stacklevel=3,
        )
    for column, without in (
        ("user", "what one user does says nothing of others"),
        ("item", "there is nothing to rank"),
        ("timestamp", "nobody has a history, and no split by time is possible"),
    ):
        values = getattr(log, column)
        if (values == values[0]).all():
            what = "second" if column == "timestamp" else column
            warnings.warn(
                f"{log.name}: all {len(log)} rows are of one {what}: {without}",
                stacklevel=3,
            )
