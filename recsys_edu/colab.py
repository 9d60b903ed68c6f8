"""What every chapter runs first, in Colab and at home."""

import os
import platform

import torch
from IPython import get_ipython
from matplotlib_inline.config import InlineBackend

import recsys_edu
from recsys_edu import viz


def setup() -> None:
    """Set the book's figure style and print one line about this environment.

    In a notebook, figures become inline SVG images without dates, so that running a
    chapter twice gives the same bytes. Safe to call again; seeds are left alone.
    """
    # torch.profiler would log its own start and stop into the page.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    viz.use_style()
    _inline_svg()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"recsys_edu {recsys_edu.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {device}, "
        f"{torch.get_num_threads()} threads"
    )


def _inline_svg() -> None:
    """Make figures inline SVG, where a notebook kernel is running."""
    shell = get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return
    backend = InlineBackend.instance(parent=shell)
    backend.figure_formats = {"svg"}
    # The style lays figures out itself; cropping would change their size.
    backend.print_figure_kwargs = {"bbox_inches": None, "metadata": {"Date": None}}
    shell.run_line_magic("matplotlib", "inline")
