"""Times: a column of whatever says when, as whole nanoseconds since 1970 (UTC)."""

from functools import partial

import numpy as np
import pandas as pd
from pandas.tseries.api import guess_datetime_format

from recsys_edu.data.interactions import LAST_SECOND
from recsys_edu.data.sheet import Sheet

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # ticks a second
# 17 February 1970. Any date up to 2100 is earlier than this if it is read in a unit a
# thousand times too small.
EARLY = LAST_SECOND // 1000
ZONE = r"[T ].*(?:Z|[+-]\d\d(?::?\d\d)?)$"  # at the end of a date and time
DECADE = 315_360_000  # seconds


def nanoseconds(sheet: Sheet, column: str, unit: str | None) -> np.ndarray:
    """When each row was, [E] int64.

    Numbers, or text that spells them, count `unit`s; None finds the unit in which the
    latest of them lies before 2100. Dates are date objects, datetimes of any resolution
    or text in ISO 8601; without a zone they are UTC.

    Raises:
        ValueError: a value that is no time or lies outside 1970..2100, an order lost in
            float32, a unit that cannot be meant, two units in one column.
    """
    values = sheet.column(column)
    if isinstance(values.dtype, pd.PeriodDtype):
        values = values.dt.to_timestamp()
    first = values.iloc[0]
    if pd.api.types.is_bool(first):
        sheet.refuse(np.ones(len(values), bool), column, "true and false are no times")
    if pd.api.types.is_timedelta64_dtype(values):
        mend = sheet.code(
            f"frame[{column!r}] = pandas.Timestamp(0) + frame[{column!r}]"
        )
        sheet.refuse(np.ones(len(values), bool), column, f"since when? mend: {mend}")
    if pd.notna(pd.to_numeric(pd.Series([first], dtype=object), errors="coerce")[0]):
        if not pd.api.types.is_datetime64_any_dtype(values):
            return _of_numbers(sheet, column, values, unit)
    return _of_dates(sheet, column, values)


def _of_numbers(
    sheet: Sheet, column: str, values: pd.Series, unit: str | None
) -> np.ndarray:
    numbers = pd.to_numeric(values, errors="coerce")
    known = f"pandas.to_numeric(frame[{column!r}], errors='coerce').notna()"
    drop = sheet.code(f"frame = frame[{known}]")
    hint = (
        f"this is not a number as the rows before it; mend, or drop such rows: {drop}"
    )
    sheet.refuse(numbers.isna(), column, hint)
    ticks = numbers.to_numpy()
    if unit is None:
        _refuse_digits_of_dates(sheet, column, ticks)
    latest = ticks.max()
    fits = [u for u, size in UNITS.items() if latest < LAST_SECOND * size]
    likely = fits[0] if fits else "ns"
    unit = unit or likely
    size = UNITS[unit]
    if ticks.dtype.kind == "f":
        step = float(np.spacing(np.abs(ticks[np.isfinite(ticks)]).max(initial=0)))
        hint = (
            f"{ticks.dtype} tells apart only times of this size that are {step:g} "
            f"{unit} apart: read them again from where they come, as int64 or float64"
        )
        sheet.refuse(np.full(len(ticks), step > size), column, hint)
    bad = ~((ticks >= 0) & (ticks < LAST_SECOND * size))
    hint = f"{unit} since 1970 must lie before 2100"
    if likely != unit:
        hint += f"; if these are {likely}, say `unit={likely!r}`"
    else:
        last = LAST_SECOND * size - 1
        drop = sheet.code(f"frame = frame[frame[{column!r}].between(0, {last})]")
        hint += f"; mend, or drop such rows: {drop}"
    sheet.refuse(bad, column, hint)
    if unit != "s" and latest < EARLY * size:
        hint = f"read as {unit}, the whole log is of early 1970; say `unit={likely!r}`"
        sheet.refuse(np.ones(len(ticks), bool), column, hint)
    whole = np.floor(ticks).astype(np.int64)
    rest = ((ticks - whole) * (10**9 // size)).astype(np.int64)
    time = whole * (10**9 // size) + rest
    row = int(np.argmin(time))
    own = next(u for u, s in UNITS.items() if ticks[row] < LAST_SECOND * s)
    factor, top = size // UNITS[own], LAST_SECOND * UNITS[own]
    if time[row] * factor >= EARLY * 10**9:
        mend = sheet.code(
            f"frame.loc[frame[{column!r}] < {top}, {column!r}] *= {factor}"
        )
        hint = f"this looks like {own} among {unit}; mend: {mend}"
    else:
        drop = sheet.code(f"frame = frame[frame[{column!r}] >= {EARLY * size}]")
        hint = f"does it stand for a missing time? drop such rows: {drop}"
    _refuse_jump(sheet, column, time, hint)
    return time


def _of_dates(sheet: Sheet, column: str, values: pd.Series) -> np.ndarray:
    first = values.iloc[0]
    form = ", format='ISO8601'" if isinstance(first, str) else ""
    if form:
        # Apart, as pandas 2 gives a text without a zone that of the text before it.
        zoned = values.astype(str).str.contains(ZONE)
        iso = partial(pd.to_datetime, utc=True, errors="coerce", format="ISO8601")
        dates = iso(values.where(zoned)).fillna(iso(values.where(~zoned)))
    else:
        dates = pd.to_datetime(values, utc=True, errors="coerce")
    how = f"pandas.to_datetime(frame[{column!r}], utc=True, errors='coerce'{form})"
    other = guess_datetime_format(first) if form and pd.isna(dates.iloc[0]) else None
    if other:
        line = f"pandas.to_datetime(frame[{column!r}], utc=True, format={other!r})"
        hint = (
            "dates are read in ISO 8601, as 2022-04-08T12:30:00Z; mend, if day and "
            f"month stand as this says: {sheet.code(f'frame[{column!r}] = {line}')}"
        )
    elif dates.isna().all():
        hint = (
            "this is neither a number nor a date in ISO 8601, as 2022-04-08T12:30:00Z"
        )
    else:
        drop = sheet.code(f"frame = frame[{how}.notna()]")
        hint = f"this is neither a date nor a number; mend, or drop such rows: {drop}"
    sheet.refuse(dates.isna(), column, hint)
    begin, end = (
        pd.Timestamp(0, tz="UTC"),
        pd.Timestamp(LAST_SECOND, unit="s", tz="UTC"),
    )
    span = "'1970-03-01', '2100-01-01', inclusive='left'"
    drop = f"drop such rows: {sheet.code(f'frame = frame[{how}.between({span})]')}"
    hint = f"a date must lie in 1970..2099; mend, or {drop}"
    sheet.refuse((dates < begin) | (dates >= end), column, hint)
    time = dates.dt.as_unit("ns").astype("int64").to_numpy()
    hint = f"does it stand for a missing time? {drop}"
    _refuse_jump(sheet, column, time, hint)
    return time


def _refuse_jump(sheet: Sheet, column: str, time: np.ndarray, hint: str) -> None:
    """Rows of early 1970 beside rows that are decades later were never meant so."""
    if time.max() > DECADE * 10**9:
        early = time < EARLY * 10**9
        sheet.refuse(early, column, f"decades before the rest of the log; {hint}")


def _refuse_digits_of_dates(sheet: Sheet, column: str, ticks: np.ndarray) -> None:
    """20220408 is a date to a reader and a day of August 1970 to a clock."""
    for form, low in (("%Y%m%d", 19700101), ("%Y%m%d%H%M%S", 19700101000000)):
        digits = len(str(low))
        if low <= ticks.min() and ticks.max() < 22 * 10 ** (digits - 2):
            whole = pd.Series(ticks.astype(np.int64).astype(str))
            if pd.to_datetime(whole, format=form, errors="coerce").notna().all():
                line = f"frame[{column!r}] = pandas.to_datetime(frame[{column!r}]"
                mend = sheet.code(f"{line}.astype(str), format={form!r})")
                hint = f"these are the digits of dates; mend: {mend}; or say `unit='s'`"
                sheet.refuse(np.ones(len(ticks), bool), column, hint)
