"""The set-up call, in a script, twice, and in a real kernel."""

import nbformat
import pytest
from matplotlib import rcParams
from nbclient import NotebookClient

from recsys_edu import colab


def test_outside_a_notebook_it_prints_one_line(capsys):
    colab.setup()
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "torch " in printed and "threads" in printed
    assert rcParams["svg.hashsalt"] is not None


def test_a_second_call_changes_nothing():
    colab.setup()
    before = dict(rcParams)
    colab.setup()
    assert dict(rcParams) == before


PLOT = """
import matplotlib.pyplot as plt
from recsys_edu import check, viz
plt.figure()
plt.plot([0, 1])
check.value("Exercise 1", 3, 3);
"""

PROFILE = """
import torch
from torch.profiler import profile
with profile() as watched:
    torch.ones(2) + 1
print(len(watched.key_averages()) > 0)
"""


@pytest.fixture(scope="module")
def outputs():
    """Outputs of the three cells of a notebook that a kernel has run."""
    cells = ["from recsys_edu import colab\ncolab.setup()", PLOT, PROFILE]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells]
    )
    NotebookClient(notebook, timeout=300).execute()
    return [cell.outputs for cell in notebook.cells]


def test_in_a_notebook_figures_are_inline_svg_without_a_date(outputs):
    (figure,) = [o.data for o in outputs[1] if "image/svg+xml" in o.get("data", {})]
    assert "image/png" not in figure
    assert "<dc:date>" not in figure["image/svg+xml"]
    assert 'width="374.4pt"' in figure["image/svg+xml"]  # 5.2 in: nothing was cropped


def test_in_a_notebook_a_check_is_a_card(outputs):
    (card,) = [o.data for o in outputs[1] if "text/html" in o.get("data", {})]
    assert "tc-check-pass" in card["text/html"]
    assert card["text/plain"] == "✓ Exercise 1"


def test_in_a_notebook_set_up_prints_one_line(outputs):
    assert "".join(o.text for o in outputs[0] if "text" in o).count("\n") == 1


def test_in_a_notebook_the_profiler_prints_nothing_of_its_own(outputs):
    assert [(o.name, o.text) for o in outputs[2]] == [("stdout", "True\n")]
