"""The bar where it may run: a terminal, a log, and a kernel."""

import io
import re

import nbformat
import pytest
from nbclient import NotebookClient

from recsys_edu.progress import progress


class Terminal(io.StringIO):
    """What was written to a screen, kept."""

    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_that_moves_in_one_line(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    assert list(progress(range(5), desc="fit", mininterval=0)) == [0, 1, 2, 3, 4]
    assert screen.getvalue().count("\n") == 1
    frames = screen.getvalue().rstrip("\n").split("\r")[1:]
    assert len(frames) >= 6
    assert "fit:   0%" in frames[0] and "fit: 100%" in frames[-1]


def test_a_log_gets_one_line_of_a_short_loop(capsys):
    assert sum(progress(range(100_000), desc="read", unit=" rows")) == 4999950000
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err
    [line] = err.splitlines()
    assert re.match(r"read: 100%.* 100000/100000 .* rows/s", line)


def test_a_log_gets_whole_lines_as_time_passes(capsys):
    for _ in progress(range(4), mininterval=0):
        """Every step is due."""
    err = capsys.readouterr().err
    assert "\r" not in err and err.endswith("\n")
    shown = [re.search(r" (\d)/4 ", line)[1] for line in err.splitlines()]
    assert shown == ["1", "2", "3", "4", "4"]


def test_a_log_shows_where_a_loop_broke_off(capsys):
    for step in progress(range(10)):
        if step == 3:
            break
    [line] = capsys.readouterr().err.splitlines()
    assert " 3/10 " in line


def test_a_log_shows_bytes_and_what_is_said_of_them(capsys):
    with progress(
        desc="ml-100k", initial=1000, total=3000, unit="B", unit_scale=True
    ) as bar:
        bar.update(500)
        bar.set_postfix_str("from the mirror", refresh=False)
    [line] = capsys.readouterr().err.splitlines()
    assert " 1.50k/3.00k " in line and "from the mirror" in line


def test_a_log_can_be_told_nothing(capsys):
    assert list(progress(range(3), disable=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_of_nested_bars_the_outer_one_stays(capsys):
    for _ in progress(range(2), desc="outer", leave=None):
        assert list(progress(range(3), desc="inner", leave=None)) == [0, 1, 2]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("outer: 100%")


CELLS = {
    "whole loop": """
import time
from recsys_edu.progress import progress
for _ in progress(range(4), desc="a<b", unit=" epochs"):
    time.sleep(0.11)  # longer than the shortest time between two drawings
""",
    "break": """
for step in progress(range(10)):
    time.sleep(0.11)
    if step == 3:
        break
""",
    "error": """
from contextlib import suppress
with suppress(ZeroDivisionError):
    for step in progress(range(10)):
        1 / (2 - step)
""",
    "epochs": """
with progress(total=20, unit=" epochs") as bar:
    for epoch in range(5):
        bar.set_postfix_str(f"NE {epoch / 10}", refresh=False)
        bar.update()
""",
    "bytes": """
with progress(
    desc="ml-100k", initial=1 << 20, total=3 << 20, unit="B", unit_scale=True
) as bar:
    bar.update(1 << 20)
    time.sleep(0.11)
    bar.update(1 << 20)
""",
    "thousands": """
with progress(total=1682, unit=" items", unit_scale=True) as bar:
    bar.update(1682)
""",
    "no total": """
with progress(unit="B", unit_scale=True) as bar:
    bar.update(1500)
""",
    "nested": """
for _ in progress(range(2), desc="outer", leave=None):
    _ = list(progress(range(3), desc="inner", leave=None))
""",
    "before it moves": """
still = progress(range(3), desc="waiting")
""",
    "disabled": """
_ = list(progress(range(3), disable=True))
""",
    "two bars": """
for name, n in [("one", 2), ("two", 3)]:
    _ = list(progress(range(n), desc=name))
""",
}
# desc, max, value and text of each bar that is left on the page.
EXPECTED = {
    "whole loop": [("a&lt;b", "4", "4", "4 epochs")],
    "break": [("", "10", "3", "3 it")],
    "error": [("", "10", "2", "2 it")],
    "epochs": [("", "20", "5", "5 epochs")],
    "bytes": [("ml-100k", "3145728", "3145728", "3.15MB")],
    "thousands": [("", "1682", "1682", "1.68k items")],
    "no total": [("", "1", "1500", "1.50kB")],
    "nested": [("outer", "2", "2", "2 it")],
    "before it moves": [("waiting", "3", "0", "0 it")],
    "disabled": [],
    "two bars": [("one", "2", "2", "2 it"), ("two", "3", "3", "3 it")],
}
BAR = re.compile(
    r'<div>([^<]*)<progress max="(\d+)" value="(\d+)" aria-label="[^"]+"></progress>'
    r" ([^,<]+), \d\d:\d\d(, NE 0.4)?</div>"
)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Name of a cell -> its outputs, from one real kernel."""
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    folder = tmp_path_factory.mktemp("notebook")
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name="python3", resources=resources).execute()
    return dict(zip(CELLS, (cell.outputs for cell in cells), strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_a_notebook_keeps_the_last_state_as_one_output_of_html(executed, name):
    outputs = executed[name]  # a line on stderr would be one of them
    assert {output.output_type for output in outputs} <= {"display_data"}
    shown = [html for output in outputs if (html := output.data["text/html"])]
    bars = [BAR.fullmatch(html) for html in shown]
    assert [bar.groups()[:4] for bar in bars] == EXPECTED[name]


def test_a_notebook_shows_what_is_said_of_the_bar(executed):
    [output] = executed["epochs"]
    assert output.data["text/html"].endswith(", NE 0.4</div>")
