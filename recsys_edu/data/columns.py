"""Columns: a table of features becomes raw dense columns, sparse ones and bags."""

import ast
import re
import warnings
from collections.abc import Mapping
from typing import NoReturn

import numpy as np
import pandas as pd

from recsys_edu.data.sheet import Sheet

LISTS = (list, tuple, set, frozenset, np.ndarray)
# What pandas calls columns of Python objects that are numbers, or days.
NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal")
DAYS = ("date", "datetime", "datetime64")


def raw_features(
    sheet: Sheet, columns: pd.DataFrame, bags: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, list]]:
    """Dense columns [n] and sparse ones, for `Features.fit`.

    Args:
        sheet: where the columns are from, for errors.
        columns: the same, in the order of the n ids; missing where an id has no row.
        bags: name of a column of text -> what separates the values of its bag.
    """
    dense: dict[str, np.ndarray] = {}
    sparse: dict[str, list] = {}
    for name in columns:
        column = _Column(sheet, name, columns[name])
        if name in bags and not column.holds_lists:
            sparse[column.name] = column.split(bags[name])
        elif column.holds_lists and column.inside in NUMBERS[1:]:
            dense |= column.vectors()
        elif column.holds_lists:
            sparse[column.name] = column.lists()
        elif column.kind in DAYS:
            dense[column.name] = column.days()
        elif pd.api.types.is_any_real_numeric_dtype(column.values):
            dense[column.name] = column.numbers()
        elif column.kind in NUMBERS:
            dense[column.name] = column.numbers()
        else:
            sparse[column.name] = column.categories()
    return dense, sparse


class _Column:
    """One column of a table of features, and what it can be read as.

    Attributes:
        values: [n] in the order of the ids, missing where an id has no row.
        there: those that are not missing.
        kind: what pandas calls them.
        inside: what pandas calls the elements of lists.
    """

    def __init__(self, sheet: Sheet, key: str, values: pd.Series) -> None:
        self._sheet, self._key, self.name = sheet, key, str(key)
        self.values, self.there = values, values.dropna()
        self.kind = pd.api.types.infer_dtype(self.there)
        self.holds_lists = bool(
            self.kind == "mixed"
            and self.there.map(lambda v: isinstance(v, LISTS)).all()
        )
        if self.holds_lists:
            elements = [v for bag in self.there for v in bag]
            self.inside = pd.api.types.infer_dtype(pd.Series(elements, dtype=object))

    def split(self, separator: str) -> list[list[str]]:
        """Bags [n] of text whose values are separated."""
        if self.kind not in ("string", "empty"):
            mend = self._set(f"{self._frame}.astype(str)")
            self._refuse(f"{separator!r} separates values in text only; mend: {mend}")
        bags = self.values.fillna("").astype(str).str.split(separator, regex=False)
        return [[v.strip() for v in bag if v.strip()] for bag in bags]

    def lists(self) -> list[list]:
        """Bags [n] of what are lists already."""
        if self.inside not in ("string", "integer", "boolean", "empty"):
            self._refuse(f"lists of type {self.inside} are no feature; {self._leave}")
        bags = [v if isinstance(v, LISTS) else () for v in self.values]
        return [sorted(v) if isinstance(v, set | frozenset) else list(v) for v in bags]

    def vectors(self) -> dict[str, np.ndarray]:
        """Dense columns `name.0`, `name.1`, ... [n] of vectors of one length."""
        lengths = self.there.map(len)
        if lengths.nunique() > 1:
            sizes = f"{lengths.min()} to {lengths.max()}"
            self._refuse(f"vectors of {sizes} numbers must be of one; {self._leave}")
        table = np.full((len(self.values), lengths.iloc[0]), np.nan)
        table[self.values.notna()] = np.array(self.there.map(list).tolist(), np.float64)
        raw = self._sheet.frame[self._key]
        infinite = [
            isinstance(v, LISTS) and np.isinf(np.array(list(v), float)).any()
            for v in raw
        ]
        self._refuse_infinite(np.array(infinite))
        return {f"{self.name}.{k}": column for k, column in enumerate(table.T)}

    def days(self) -> np.ndarray:
        """Days since 1970, [n]."""
        since = pd.to_datetime(self.values, utc=True) - pd.Timestamp(0, tz="UTC")
        return (since / pd.Timedelta("1D")).to_numpy(dtype=np.float64)

    def numbers(self) -> np.ndarray:
        """Numbers [n], NaN where missing."""
        self._refuse_infinite(self._sheet.frame[self._key].isin((np.inf, -np.inf)))
        return self.values.astype(float).to_numpy(np.float64, na_value=np.nan)

    def categories(self) -> list:
        """Text, booleans or categories [n], None where missing."""
        if self.kind == "string":
            self._refuse_disguise()
            self._tell_bags()
            self._tell_names()
        elif self.kind not in ("boolean", "categorical", "empty"):
            mend = self._set(f"{self._frame}.astype(str)")
            hint = (
                f"values of type {self.kind} are no feature; as text they are: {mend}"
            )
            self._refuse(f"{hint}; or {self._leave}")
        values = self.values.astype(object)
        return values.where(values.notna(), None).tolist()

    @property
    def _frame(self) -> str:
        return f"frame[{self._key!r}]"

    @property
    def _leave(self) -> str:
        line = f"frame = frame.drop(columns={self._key!r})"
        return f"leave them out: {self._sheet.code(line)}"

    def _set(self, value: str, before: str = "") -> str:
        return self._sheet.code(f"{before}{self._frame} = {value}")

    def _refuse(self, hint: str) -> NoReturn:
        self._sheet.refuse(self._sheet.frame[self._key].notna(), self._key, hint)
        raise AssertionError("no row to name")

    def _refuse_infinite(self, bad: pd.Series | np.ndarray) -> None:
        has = f"{self._frame}.map(lambda v: numpy.isinf(v).any(), na_action='ignore')"
        drop = self._sheet.code(f"frame = frame[{has} != True]")
        hint = f"a feature must be finite; mend, or leave out such rows: {drop}"
        self._sheet.refuse(bad, self._key, hint)

    def _refuse_disguise(self) -> None:
        """Numbers and lists that went through a text file and came back as text."""
        texts = pd.Index(self.there.unique())
        comma = texts.str.contains(",").any()
        if comma and texts.str.fullmatch(r"[+-]?\d+(,\d+)?").all():
            mend = self._set(f"pandas.to_numeric({self._frame}.str.replace(',', '.'))")
            self._refuse(
                f"is this a number with a decimal comma? mend: {mend}; if it is two "
                f"codes, say `bags={{{self._key!r}: ','}}`"
            )
        if texts.str.fullmatch(r"\[.*\]", flags=re.DOTALL).all():
            before, parse = "import ast; ", "ast.literal_eval"
            try:
                ast.literal_eval(texts[0])
            except (ValueError, SyntaxError):  # as numpy prints an array
                before, parse = (
                    "",
                    "lambda v: [float(x) for x in v.strip('[]').split()]",
                )
            mend = self._set(f"{self._frame}.map({parse}, na_action='ignore')", before)
            self._refuse(f"this is a list that was written as text; mend: {mend}")

    def _tell_bags(self) -> None:
        """Warns of values with a bar inside, which are bags as a rule."""
        barred = self.there.str.contains("|", regex=False)
        if barred.mean() > 0.3:
            example = self.there[barred].iloc[0]
            warnings.warn(
                f"{self._sheet.name}, column {self._key!r}: {example!r}"
                f" is one category, here; if it is a bag of several, say "
                f"`bags={{{self._key!r}: '|'}}`",
                stacklevel=6,
            )

    def _tell_names(self) -> None:
        """Warns of a text that tells all rows apart: a name, and no feature."""
        different = self.there.nunique()
        if len(self.there) >= 100 and different > 0.9 * len(self.there):
            warnings.warn(
                f"{self._sheet.name}, column {self._key!r}: {different} different texts"
                f" in {len(self.there)} rows say who it is, not how it is; if they"
                f" are names of items, say `title={self._key!r}`; or {self._leave}",
                stacklevel=6,
            )
