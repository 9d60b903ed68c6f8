"""Sheets: a table from a file or a DataFrame, and words for what is wrong with it."""

import bz2
import codecs
import csv
import gzip
import lzma
import re
import warnings
import zlib
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

Table = str | Path | pd.DataFrame

# How a file begins says what it is; its name may lie.
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
BYTE_ORDER_MARKS = {  # the longer ones first: that of UTF-16 begins that of UTF-32
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
FOREIGN = {  # what else a reader may hand in, and what opens it
    b"PK\x03\x04": "frame = pandas.read_excel({!r})",
    b"\xd0\xcf\x11\xe0": "frame = pandas.read_excel({!r})",
    b"ARROW1": "frame = pandas.read_feather({!r})",
    b"FEA1": "frame = pandas.read_feather({!r})",
    b"{": "frame = pandas.read_json({!r}, lines=True, dtype=False)",
    b"[": "frame = pandas.read_json({!r}, dtype=False)",
}
# What the parsers raise over a damaged file.
DAMAGED = (ValueError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
SEPARATORS = ",;\t|"
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
# What counts as a missing value in a column of a text file that does not hold ids.
MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "nan", "NaN", "NAN", "NULL", "null")
MISSING += ("None", "none", "NaT")


class Sheet:
    """A table, what to call it in errors, and how a reader gets hold of it.

    An error says what is wrong and then, between backticks, what mends it: an argument
    for `tables.read`, or a line of code after which `frame` is what to pass.

    Attributes:
        frame: the columns; blanks around their names are gone, and so are columns
            without a name, which is how pandas writes an index.
        name: the file, or "the DataFrame".
        repeated: names that more than one column has.
    """

    def __init__(self, frame: pd.DataFrame, name: str, opened: str = "") -> None:
        index_is_data = any(level is not None for level in frame.index.names)
        frame = frame.reset_index(drop=not index_is_data)
        names = [n.strip() if isinstance(n, str) else n for n in frame.columns]
        named = [str(n) != "" and not str(n).startswith("Unnamed: ") for n in names]
        if not len(frame):
            raise ValueError(f"{name} has no rows")
        self.frame = frame.set_axis(names, axis=1).loc[:, named]
        self.name, self._opened = name, opened
        self.repeated = set(self.frame.columns[self.frame.columns.duplicated()])

    @classmethod
    def open(
        cls,
        table: Table,
        text: tuple[str, ...] = (),
        words: tuple[str, ...] = (),
        encoding: str | None = None,
        name: str = "the DataFrame",
    ) -> "Sheet":
        """Reads a Parquet file or a text file, compressed or not, or takes a DataFrame.

        A text file has a header and is separated by commas, semicolons, tabs or bars,
        whichever cuts the header into the most names. It is UTF-8, or what its byte
        order mark says, or in `encoding`.

        Args:
            text: columns that stay as they are written, such as ids.
            words: columns where `NA`, `None` and the like are values too.
            encoding: of a text file that is not UTF-8 and has no mark.
            name: what to call a DataFrame in errors.

        Raises:
            ValueError: no such file can be read; says what it is and what opens it.
        """
        if isinstance(table, pd.DataFrame):
            return cls(table, name)
        if not isinstance(table, str | Path):
            made = "frame.to_pandas()"
            if not hasattr(table, "to_pandas"):
                made = "pandas.DataFrame(frame)"
            raise ValueError(
                f"a table is a path or a pandas DataFrame, not {type(table)}; "
                f"mend: `frame = {made}`"
            )
        path = Path(table)
        try:
            frame = _read_file(path, {*text}, {*text, *words}, encoding)
        except DAMAGED as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        how = [repr(str(path)), *map(repr, text)]
        how += [f"words={words}"] * bool(words)
        how += [f"encoding={encoding!r}"] * bool(encoding)
        opened = f"frame = tables.frame({', '.join(how)}); "
        return cls(frame, str(path), opened)

    def code(self, line: str) -> str:
        """A line of code about `frame`, preceded by what makes `frame` of the file."""
        return f"`{self._opened}{line}`"

    def require(self, **columns: str | None) -> None:
        """Raises unless every column is there, and there once.

        Args:
            columns: argument of `tables.read` -> the column that it names, or None.
        """
        there = list(self.frame)
        free = [name for name in there if name not in columns.values()] or there
        for argument, name in columns.items():
            if name is not None and name not in there:
                folded = {str(other).casefold(): other for other in free}
                close = get_close_matches(str(name).casefold(), folded, 1, 0.5)
                yours = folded[close[0]] if close else free[-1]
                raise ValueError(
                    f"{self.name} has no column {name!r}, only {there}; mend: "
                    f"say what yours is called, as in `{argument}={yours!r}`"
                )
            if name is not None:
                self.once(name)

    def once(self, name: str) -> None:
        """Raises if two columns have this name."""
        if name in self.repeated:
            mend = self.code("frame = frame.loc[:, ~frame.columns.duplicated()]")
            raise ValueError(
                f"{self.name} has {list(self.frame).count(name)} columns called "
                f"{name!r}; rename one, or keep the first: {mend}"
            )

    def column(self, name: str) -> pd.Series:
        """The column, which must have no gap."""
        column = self.frame[name]
        keep = self.code(f"frame = frame.dropna(subset=[{name!r}])")
        hint = f"fill in the missing value, or drop such rows: {keep}"
        self.refuse(column.isna(), name, hint)
        return column

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


def _read_file(
    path: Path, text: AbstractSet, words: AbstractSet, encoding: str | None
) -> pd.DataFrame:
    begin = b"PAR1"
    if not path.is_dir():
        with path.open("rb") as file:
            begin = file.read(8)
    if begin.startswith(b"PAR1") or path.suffix.lower() in (".parquet", ".pq"):
        return pd.read_parquet(path)
    for mark, opened in FOREIGN.items():
        if begin.startswith(mark):
            if path.suffix.lower() == ".zip":
                opened = "frame = pandas.read_csv({!r}, compression='zip')"
            mend = opened.format(str(path))
            raise ValueError(f"it is no text file and no Parquet file; mend: `{mend}`")
    opens = next((o for mark, o in COMPRESSED.items() if begin.startswith(mark)), open)
    with opens(path, "rb") as file:
        head = file.read(2**16)
    for mark, encoded in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return _read_text(path, opens, head, text, words, encoded)
    wide = head.count(0) > len(head) // 4
    if wide and encoding is None:
        guess = "utf-16-be" if head.startswith(b"\0") else "utf-16-le"
        raise ValueError(
            "it is full of bytes 0 and has no byte order mark; mend: "
            f"say what it is written in, most likely `encoding={guess!r}`"
        )
    try:
        if not wide:
            return _read_text(path, opens, head, text, words, "utf-8")
    except UnicodeDecodeError as error:
        if encoding is None:
            byte = error.object[error.start]
            raise ValueError(
                f"byte 0x{byte:02x} is not UTF-8; mend: say what it is written in, "
                "most likely `encoding='latin-1'`"
            ) from error
    return _read_text(path, opens, head, text, words, encoding)


def _cut(line: str) -> tuple[str, list[str]]:
    """The separator that cuts a line into the most fields, and these."""
    cuts = {sep: next(csv.reader([line], delimiter=sep)) for sep in SEPARATORS}
    return max(cuts.items(), key=lambda cut: len(cut[1]))


def _read_text(
    path: Path,
    opens: Callable,
    head: bytes,
    text: AbstractSet,
    words: AbstractSet,
    encoding: str,
) -> pd.DataFrame:
    lines = codecs.getincrementaldecoder(encoding)().decode(head).splitlines(True)
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ValueError("it is empty")
    separator, header = _cut(lines[0])
    names = [name.strip() for name in header]
    how = f"{str(path)!r}, sep={separator!r}"
    if len([name for name in names if name]) == 1 and len(lines) > 1:
        below, fields = _cut(lines[1])
        other = "'::', engine='python'" if "::" in lines[0] else r"r'\s+'"
        if len(fields) > 1:
            other = f"{below!r}, skiprows=1"
        if len(fields) > 1 or "::" in lines[0] or len(names[0].split()) > 1:
            raise ValueError(
                f"its first line has one name, {names[0]!r}; mend: "
                f"`frame = pandas.read_csv({str(path)!r}, sep={other})`"
            )
    if len(names) > 1 and all(NUMBER.fullmatch(name) for name in names):
        columns = [f"column {k}" for k in range(len(names))]
        mend = f"`frame = pandas.read_csv({how}, names={columns})`"
        raise ValueError(f"its first line is data, where names should be; mend: {mend}")
    # A separator at the end of every line makes columns without a name, and empty.
    first = next(islice(csv.reader(lines, delimiter=separator), 1, None), [])
    if not any(beyond := first[len(names) :]):
        names += [""] * len(beyond)
    try:
        with opens(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                file,
                sep=separator,
                encoding=encoding,
                header=0,
                names=range(len(names)),
                index_col=False,  # or a field too many makes an index of the first
                dtype={k: str for k, name in enumerate(names) if name in text},
                keep_default_na=False,
                na_values={
                    k: [""] if name in words else list(MISSING)
                    for k, name in enumerate(names)
                },
                skipinitialspace=True,
                low_memory=False,  # or a column has one type a chunk
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        what, option = "a row has more fields than the header has names", ""
        if "inside string" in str(error):
            what, option = "a quotation mark is not closed", ", quoting=3"
        mend = f"pandas.read_csv({how}, index_col=False, on_bad_lines='skip'{option})"
        raise ValueError(
            f"{what} ({str(error).strip()}); mend, leaving out what is too much: "
            f"`frame = {mend}`"
        ) from error
    return frame.set_axis(names, axis=1)
