"""Ids: what users, items and requests are called, the same in every table.

Ids are compared as text, so that a column of integers in one table and of text in
another meet, and no digit is lost. "007" and "7" are two ids. Whole numbers that come
as floats, which is what a missing value or a join makes of integers, are the integers
they were; so is a column of text where every id ends in ".0".
"""

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd

from recsys_edu.data.sheet import Sheet

WHOLE = r"0|-?[1-9]\d{0,18}"
EXACT = 2**53  # from here on, neighbouring integers are one float64
# What pandas calls a column that may hold ids, once the missing ones are refused.
NAMES = (
    "string",
    "integer",
    "floating",
    "mixed-integer-float",
    "mixed-integer",
    "mixed",
)
# What may keep the ids of two tables apart: how they would meet, and what mends it.
CAUSES: dict[str, tuple[Callable[[pd.Index], pd.Index], str]] = {
    "blanks around them": (lambda ids: ids.str.strip(), ".astype(str).str.strip()"),
    "capitals": (lambda ids: ids.str.lower(), ".astype(str).str.lower()"),
    "leading zeros": (
        lambda ids: ids.str.replace(r"^0+(?=.)", "", regex=True),
        ".astype(str).str.replace(r'^0+(?=.)', '', regex=True)",
    ),
}


def spelled(sheet: Sheet, column: str) -> tuple[np.ndarray, pd.Index]:
    """The place [E] of each row's id among the [k] different ones, which are text.

    Raises:
        ValueError: ids that are no ids (dates, lists, true and false, fractions), that
            lost digits as floats, or one id in two spellings, `1` and `1.0`.
    """
    values = sheet.column(column)
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    try:
        place, known = pd.factorize(values)
    except TypeError:
        hint = "an id is a number or text; mend, if this is one: "
        hint += sheet.code(f"frame[{column!r}] = frame[{column!r}].astype(str)")
        sheet.refuse(np.ones(len(values), bool), column, hint)
    known = pd.Index(known)

    def refuse(bad: np.ndarray, hint: str) -> None:
        sheet.refuse(np.asarray(bad, bool)[place], column, hint)

    as_text = sheet.code(f"frame[{column!r}] = frame[{column!r}].astype(str)")
    kind = pd.api.types.infer_dtype(known)
    if kind == "bytes":
        mend = sheet.code(f"frame[{column!r}] = frame[{column!r}].str.decode('utf-8')")
        refuse(np.ones(len(known)), f"an id is a number or text; mend: {mend}")
    if kind not in NAMES:
        hint = f"these are of type {kind}; if they are ids, mend: {as_text}"
        refuse(np.ones(len(known)), hint)
    if kind in ("floating", "mixed-integer-float"):
        known = known.astype(np.float64)
        hint = f"ids of type float that are no whole numbers; mend: {as_text}"
        refuse(known != np.floor(known), hint)
        hint = (
            "as a float, an id of 16 digits or more has lost its last ones: read it as "
            f"text, with `dtype={{{column!r}: str}}` in pandas, or pass the path"
        )
        refuse(np.abs(known) >= EXACT, hint)
        known = known.astype(np.int64)
    known = known.astype(str)
    powers = known.str.fullmatch(r"-?\d(\.\d+)?[eE]\+\d+")
    refuse(powers, "a number in this form has lost its last digits: write it in full")
    pointed = known.str.fullmatch(r"-?\d+\.0+")
    if pointed.any():
        whole = known.str.replace(r"\.0+$", "", regex=True)
        text = "frame[{0!r}].astype(str).str.replace(r'\\.0+$', '', regex=True)"
        mend = sheet.code(f"frame[{column!r}] = {text.format(column)}")
        hint = f"some ids end in '.0' and some do not; mend: {mend}"
        refuse(pointed & (not pointed.all()) & whole.isin(known), hint)
        known = whole if pointed.all() else known
    if not known.is_unique:  # 7 and "7"
        again, known = pd.factorize(known)
        place = again[place]
    return place, known


def numbered(names: pd.Index) -> tuple[pd.Index, np.ndarray]:
    """Ids as text -> the same sorted, and as they leave this module, [n] both.

    They leave as int64, and are sorted as such, if all of them are whole numbers that
    fit; else all are text. An unsigned hash of 20 digits is text.
    """
    if names.str.fullmatch(WHOLE).all():
        whole = pd.to_numeric(names)
        if whole.dtype == np.int64:
            ids = np.sort(whole.to_numpy())
            return pd.Index(ids.astype(str)), ids
    names = names.sort_values()
    return names, names.to_numpy(dtype=str)


def tell_strangers(log: Sheet, shown: pd.Index, sheet: Sheet, ids: pd.Index, key: str):
    """Raises if no id of the log has features, and warns if most of them have none.

    Args:
        shown, ids: the different ids of the log, and of the table of features.
    """
    share = shown.isin(ids).mean()
    if share >= 0.5:
        return
    strange, other = shown[~shown.isin(ids)][0], ids[~ids.isin(shown)][:1]
    text = (
        f"{sheet.name}, column {key!r}: {share:.1%} of the {len(shown)} ids of "
        f"{log.name} are here; {strange!r} is not"
    )
    text += f", and {other[0]!r} is not there" if len(other) else ""
    for cause, (meet, code) in CAUSES.items():
        if meet(shown).isin(meet(ids)).mean() > max(0.5, share):
            line = f"frame[{key!r}] = frame[{key!r}]{code}"
            text += f"; what differs is {cause}; mend, in both tables: `{line}`"
            break
    else:
        text += "; is it the column of the same ids?" if share == 0 else ""
    if share == 0:
        raise ValueError(text)
    warnings.warn(text, stacklevel=4)
