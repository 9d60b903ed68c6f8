"""The card that a check shows."""

import html
from dataclasses import dataclass
from typing import Literal

from recsys_edu.check.differences import Grid

_LOOK = {"pass": ("✓", "#117733"), "fail": ("✗", "#CC3311"), "blank": ("○", "#767676")}
_WRONG_CELL = "background:#FBE3D6;color:#7A2E00;font-weight:bold"


@dataclass(frozen=True, repr=False)
class Card:
    """What a check shows: HTML in a notebook, text anywhere else."""

    status: Literal["pass", "fail", "blank"]
    name: str
    detail: str = ""
    grid: Grid = ()

    def __repr__(self) -> str:
        mark, _ = _LOOK[self.status]
        lines = [f"{mark} {self.name}" + (f": {self.detail}" if self.detail else "")]
        width = max((len(text) for row in self.grid for text, _ in row), default=0)
        lines += ["  ".join(text.rjust(width) for text, _ in row) for row in self.grid]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        mark, colour = _LOOK[self.status]
        detail = f": {html.escape(self.detail)}" if self.detail else ""
        return (
            f'<div class="tc-check tc-check-{self.status}" role="status" '
            f'style="border-left:4px solid {colour};padding:.2em .8em;margin:.5em 0">'
            f"{mark} <strong>{html.escape(self.name)}</strong>{detail}"
            f"{self._grid_html() if self.grid else ''}</div>"
        )

    def _grid_html(self) -> str:
        rows = "".join(
            "<tr>"
            + "".join(
                f'<td style="padding:.1em .5em;{"" if right else _WRONG_CELL}">'
                f"{html.escape(text)}</td>"
                for text, right in row
            )
            + "</tr>"
            for row in self.grid
        )
        # The box scrolls, not the page; a keyboard can only scroll what it can focus.
        return (
            '<div style="overflow-x:auto" tabindex="0" role="group" '
            f'aria-label="where the values differ"><table>{rows}</table></div>'
        )
