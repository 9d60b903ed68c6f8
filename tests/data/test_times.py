"""Times in every form that logs have them in, and the values they stand for."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from recsys_edu.data.sheet import Sheet
from recsys_edu.data.times import nanoseconds

FIRST, SECOND = 1_649_421_000, 1_649_421_060  # 2022-04-08 12:30 and 12:31 UTC
NAIVE = np.array([FIRST, SECOND], "M8[s]")
OSLO = dt.timezone(dt.timedelta(hours=2))


def read(values, unit=None, dtype=None):
    column = values if isinstance(values, pd.Series) else pd.Series(values, dtype=dtype)
    return nanoseconds(Sheet(pd.DataFrame({"t": column}), "the log"), "t", unit)


@pytest.mark.parametrize(
    "values",
    [
        [FIRST, SECOND],
        [FIRST * 10**3, SECOND * 10**3],
        [FIRST * 10**6, SECOND * 10**6],
        [FIRST * 10**9, SECOND * 10**9],
        [float(FIRST), float(SECOND)],
        [FIRST * 1e3, SECOND * 1e3],
        [str(FIRST), str(SECOND)],
        [f"{FIRST}.0", f"{SECOND}.0"],
        [str(FIRST * 10**9), str(SECOND * 10**9)],
        ["2022-04-08T12:30:00Z", "2022-04-08T12:31:00Z"],
        ["2022-04-08 12:30:00", "2022-04-08 12:31:00"],
        ["2022-04-08T12:30", "2022-04-08T12:31"],
        ["2022-04-08T12:30:00.000Z", "2022-04-08T12:31:00Z"],
        ["2022-04-08T14:30:00+02:00", "2022-04-08T14:31:00+02:00"],
        ["2022-04-08T14:30:00+02:00", "2022-04-08T07:31:00-05:00"],
        ["2022-04-08T14:30:00+0200", "2022-04-08 12:31:00"],
        ["20220408T123000Z", "20220408T123100Z"],
    ],
    ids=str,
)
def test_numbers_of_any_unit_and_iso_text_are_the_same_moments(values):
    assert read(values).tolist() == [FIRST * 10**9, SECOND * 10**9]


@pytest.mark.parametrize(
    "values",
    [
        *[pd.Series(NAIVE.astype(f"M8[{unit}]")) for unit in ("s", "ms", "us", "ns")],
        pd.Series(NAIVE).dt.tz_localize("UTC"),
        pd.Series(NAIVE).dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"),
        pd.Series(NAIVE).astype("timestamp[us][pyarrow]"),
        pd.Series([dt.datetime(2022, 4, 8, 12, 30), dt.datetime(2022, 4, 8, 12, 31)]),
        pd.Series(
            [
                dt.datetime(2022, 4, 8, 14, 30, tzinfo=OSLO),
                dt.datetime(2022, 4, 8, 12, 31, tzinfo=dt.UTC),
            ],
            dtype=object,
        ),
        pd.Series(pd.to_datetime(NAIVE)).astype("category"),
        pd.Series(pd.to_datetime(NAIVE)).dt.to_period("s"),
        pd.Series([FIRST, SECOND], dtype="Int64"),
        pd.Series([FIRST, SECOND], dtype="uint64"),
        pd.Series([FIRST, SECOND], dtype="int64[pyarrow]"),
        pd.Series([Decimal(FIRST), Decimal(SECOND)], dtype=object),
    ],
    ids=lambda values: f"{values.dtype} of {type(values[0]).__name__}",
)
def test_columns_of_any_type_are_the_same_moments(values):
    assert read(values).tolist() == [FIRST * 10**9, SECOND * 10**9]


@pytest.mark.parametrize("dtype", [object, "date32[day][pyarrow]"])
def test_dates_begin_at_midnight_utc(dtype):
    days = pd.Series([dt.date(2022, 4, 8), dt.date(2022, 4, 9)], dtype=dtype)
    midnight = FIRST - 12 * 3600 - 30 * 60
    assert (read(days) // 10**9).tolist() == [midnight, midnight + 86_400]
    assert read(["2022-04-08", "2022-04-09"]).tolist() == read(days).tolist()


def test_nothing_within_a_second_is_lost():
    assert read([FIRST * 10**9 + 1, FIRST * 10**9 + 2]).tolist() == [
        FIRST * 10**9 + 1,
        FIRST * 10**9 + 2,
    ]
    assert read([f"{FIRST}123456789", f"{FIRST}123456790"])[1] % 10**9 == 123456790
    assert read([FIRST + 0.25, FIRST + 0.5]).tolist() == [
        FIRST * 10**9 + 250_000_000,
        FIRST * 10**9 + 500_000_000,
    ]
    iso = ["2022-04-08T12:30:00.123456789Z", "2022-04-08T12:30:00.5Z"]
    assert (read(iso) % 10**9).tolist() == [123_456_789, 500_000_000]
    # The last float before a second is not rounded into it.
    assert read([np.nextafter(FIRST, 0)])[0] // 10**9 == FIRST - 1


def test_small_numbers_are_seconds_of_a_toy():
    assert read([10, 20, 30]).tolist() == [10**10, 2 * 10**10, 3 * 10**10]
    assert read(np.float32([10, 20])).tolist() == [10**10, 2 * 10**10]


def test_an_explicit_unit_is_honoured():
    # 20220408 could be a date; whoever says seconds means August 1970.
    assert read([20220408, 20220409], unit="s")[0] == 20220408 * 10**9
    assert read([LATE := 4_102_444_800, LATE + 1], unit="ms")[1] == (LATE + 1) * 10**6


@pytest.mark.parametrize(
    ("values", "unit", "message"),
    [
        (np.float32([FIRST]), None, "row 0: .* float32 .* 128 s apart: read them agai"),
        (np.float32([FIRST * 1e3]), None, "float32 .* 131072 ms apart"),
        ([FIRST, SECOND * 1000], None, f"row 0: {FIRST}; decades .* s among ms"),
        ([FIRST * 1000, SECOND], None, f"row 1: {SECOND}; decades .* s among ms"),
        ([FIRST * 1000, SECOND], "ms", "row 1: .*s among ms"),
        ([FIRST * 10**9, SECOND], None, "row 1: .*s among ns.* [*]= 1000000000`"),
        ([FIRST * 10**6, SECOND * 1000], None, "row 1: .*ms among us"),
        ([FIRST, SECOND * 1000], "s", "row 1: .* before 2100; .*say `unit='ms'`"),
        ([FIRST, SECOND], "ms", "the whole log is of early 1970; say `unit='s'`"),
        ([FIRST * 1000], "us", "the whole log is of early 1970; say `unit='ms'`"),
        ([FIRST, 0], None, "row 1: 0; decades before .* missing time"),
        ([FIRST * 1000, 0], None, "row 1: 0; decades before .* missing time"),
        (["2022-04-08", "1970-01-01"], None, "row 1: '1970-01-01'; decades before"),
        ([20220408, 20220409], None, "row 0: 20220408; these are the digits of dates"),
        ([20220408123000], None, "these are the digits of dates"),
        (["2022-04-08", "noon"], None, "row 1: 'noon'; this is neither"),
        ([str(FIRST), "noon"], None, "row 1: 'noon'; this is not a number"),
        (["04/08/2022 12:30"], None, r"ISO 8601.*format='%m/%d/%Y %H:%M'"),
        (["2100-01-01"], None, "row 0: '2100-01-01'; .*1970..2099"),
        (["3000-01-01"], None, "row 0: '3000-01-01'"),
        (["1969-12-31"], None, "row 0: '1969-12-31'; .*1970..2099"),
        ([FIRST, -1], None, "row 1: -1; s since 1970"),
        ([FIRST, np.inf], None, "row 1: inf"),
        ([True, False], None, "row 0: True; true and false are no times"),
        (pd.to_timedelta([5], "s"), None, "row 0: Timedelta.*since when"),
        ([[FIRST]], None, "row 0: .*neither a number nor a date"),
        (["2022-W14-5T12:00"], None, "row 0: '2022-W14-5T12:00'; .* in ISO 8601"),
        ([FIRST, None], None, "row 1: nan; fill in the missing value"),
    ],
)
def test_what_cannot_be_a_time_is_named(values, unit, message):
    with pytest.raises(ValueError, match="the log, column 't', .*" + message):
        read(values, unit)
