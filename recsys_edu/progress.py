"""A progress bar that looks right in a terminal, in a notebook and in a log.

tqdm's own notebook bar is a widget: it needs a kernel or a script from the network to
show itself again. This one leaves plain HTML in the notebook, so that a saved page
shows the finished bar and needs nothing.
"""

from __future__ import annotations

import sys
from html import escape
from typing import Any

from tqdm.std import tqdm


def _in_notebook() -> bool:
    """True in a Jupyter kernel (Colab's too), without importing IPython elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")


class _Bar(tqdm):
    """A tqdm that shows itself through ``display`` alone, once more when it closes.

    It is made with ``gui=True``, which keeps tqdm from moving a cursor on stderr.
    """

    def close(self) -> None:
        if self.disable:
            return
        # As tqdm has it: leave=None leaves the outermost of nested bars only.
        if self.leave or (self.leave is None and self.pos == 0):
            self.display()
        else:
            self.clear()
        self.disable = True
        self._decr_instances(self)

    def clear(self, nolock: bool = False) -> None:
        """Nothing to take back."""


class _NotebookBar(_Bar):
    """Redraws one HTML output in place."""

    def clear(self, nolock: bool = False) -> None:
        from IPython.display import HTML

        self._handle.update(HTML(""))

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        from IPython.display import HTML, display

        done = f"{self.n} {self.unit.strip()}"
        if self.unit_scale:  # "1.05MB", "1.68k items"
            done = tqdm.format_sizeof(self.n) + self.unit
        elapsed = tqdm.format_interval(self.format_dict["elapsed"])
        text = ", ".join(filter(None, [done, elapsed, self.postfix]))
        bar = f'<progress max="{self.total or 1}" value="{self.n}"'
        bar += f' aria-label="{escape(self.desc or "progress")}"></progress>'
        page = HTML(f"<div>{escape(self.desc or '')}{bar} {escape(text)}</div>")
        if hasattr(self, "_handle"):
            self._handle.update(page)
        else:
            self._handle = display(page, display_id=True)


class _LogBar(_Bar):
    """Prints lines: what a log has shown it cannot take back."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        print(self, file=self.fp, flush=True)


def progress(*args: Any, **kwargs: Any) -> tqdm:
    """A ``tqdm`` (same arguments) for where the program runs.

    In a notebook: one bar of HTML. In a terminal: the usual bar. In a log, where a bar
    cannot move: a line every ten seconds and one at the end. With ``leave=None`` a bar
    inside another's loop is taken back when it ends.
    """
    if _in_notebook():
        bar = _NotebookBar(*args, gui=True, **kwargs)
        bar.refresh()  # shown from the start, and again as it moves
        return bar
    if sys.stderr.isatty():
        return tqdm(*args, **kwargs)
    return _LogBar(*args, gui=True, **{"mininterval": 10, "ascii": True, **kwargs})
