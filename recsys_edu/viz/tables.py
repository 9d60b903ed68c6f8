"""The book's running table: one row per design, one column per clock."""

import html
from collections.abc import Mapping

from IPython.display import HTML

from recsys_edu.bench import Timing
from recsys_edu.cost.clocks import Clock, Cost
from recsys_edu.units import humanize
from recsys_edu.viz.style import CLOCK_COLOURS

Work = tuple[Cost, Timing | None, str]
"""What one tick of a clock costs, how long it took if that was measured, a note."""

# The box scrolls, not the page; a keyboard can only scroll what it can focus.
_BOX = (
    '<div class="tc-clock-table" role="region" tabindex="0" '
    'aria-label="Work on the three clocks" style="overflow-x:auto;max-width:100%">'
)
_CELL = "text-align:left;vertical-align:top;padding:.3em .8em .3em 0"


def clock_table(rows: Mapping[str, Mapping[Clock, Work]]) -> HTML:
    """The three-clock table: `rows[design][clock] = (cost per tick, timing, note)`.

    A clock that a design leaves out is shown as "-". Numbers are rounded to three
    digits; the timing is the median of its rounds.
    """
    heads = "".join(
        f'<th scope="col" style="{_CELL};border-top:4px solid {CLOCK_COLOURS[clock]}">'
        f"{clock.label}<br>({clock.tick})</th>"
        for clock in Clock
    )
    body = "\n".join(
        f'<tr><th scope="row" style="{_CELL}">{html.escape(design)}</th>'
        + "".join(f'<td style="{_CELL}">{_cell(work.get(c))}</td>' for c in Clock)
        + "</tr>"
        for design, work in rows.items()
    )
    return HTML(
        f'{_BOX}<table style="border-collapse:collapse">\n'
        f'<thead><tr><th scope="col" style="{_CELL}">design</th>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(work: Work | None) -> str:
    if work is None:
        return "-"
    cost, timing, note = work
    numbers = [humanize(cost.flops, "FLOP"), humanize(cost.bytes, "B")]
    if timing is not None:
        numbers.append(humanize(timing.median, "s"))
    # Numbers keep together with their units; lines break at the commas only.
    joined = ", ".join(f'<span style="white-space:nowrap">{n}</span>' for n in numbers)
    return f"{html.escape(note)}<br>{joined}" if note else joined
