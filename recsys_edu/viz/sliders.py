"""Interactive figures that need no kernel and no network: one drawing per value."""

import base64
import hashlib
import html
import io
from collections.abc import Callable, Sequence
from typing import TypeVar

from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

Value = TypeVar("Value")

# Dropping every entry leaves no metadata at all, hence no date.
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))

# The first frame stands in the HTML, so that the figure is there without scripts. A
# block scope keeps the page's globals untouched, however many sliders it holds.
_TEMPLATE = """\
<figure class="tc-slider" id="{id}" style="margin:0 0 1em">
<div class="tc-slider-frames">{frames}</div>
<div class="tc-slider-control" style="display:flex;flex-wrap:wrap;gap:.25em .75em;\
align-items:center;max-width:500px">
<label for="{id}-range">{label}</label>
<input type="range" id="{id}-range" min="0" max="{last}" step="1" value="0" \
aria-label="{label}" aria-valuetext="{first}" autocomplete="off" \
style="flex:1 1 10em;min-width:8em">
<output for="{id}-range" aria-live="off" style="min-width:{width}ch">{first}</output>
</div>
<figcaption>{caption}</figcaption>
<script>
{{
  const figure = document.getElementById("{id}");
  const range = figure.querySelector("input");
  const output = figure.querySelector("output");
  const frames = figure.querySelectorAll("img");
  const show = () => {{
    frames.forEach((frame, i) => {{ frame.hidden = i !== Number(range.value); }});
    output.value = frames[range.value].dataset.value;
    range.setAttribute("aria-valuetext", output.value);
  }};
  range.addEventListener("input", show);
  show();
}}
</script>
</figure>
"""


def slider(
    draw: Callable[[Value], Figure],
    values: Sequence[Value],
    *,
    label: str,
    alt: Callable[[Value], str],
    caption: str,
    text: Callable[[Value], str] = str,
) -> HTML:
    """A figure with a slider: `draw(value)` for each of `values`, one shown at a time.

    draw     returns a matplotlib figure; give every value the same figure size
    label    what the slider changes, such as "history length N"
    alt      describes the frame of one value to a reader who cannot see it
    caption  plain text: what to see, not what is drawn
    text     how a value is written beside the slider

    Every frame is kept inside the page as an SVG image of some 20 to 30 kB, so a
    dozen values are plenty. Without scripts the first one is shown.
    Raises ValueError if there are no values.
    """
    if not values:
        raise ValueError("a slider needs at least one value")
    frames = "\n".join(
        _frame(draw(value), alt(value), text(value), hidden=index > 0)
        for index, value in enumerate(values)
    )
    digest = hashlib.sha256(f"{label}\n{caption}\n{frames}".encode()).hexdigest()
    return HTML(
        _TEMPLATE.format(
            id=f"tc-slider-{digest[:12]}",
            frames=frames,
            label=html.escape(label),
            last=len(values) - 1,
            first=html.escape(text(values[0])),
            width=max(len(text(value)) for value in values),
            caption=html.escape(caption),
        )
    )


def _frame(figure: Figure, alt: str, text: str, *, hidden: bool) -> str:
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata=_NO_METADATA)
    plt.close(figure)  # or the notebook would show it a second time
    compact = " ".join(svg.getvalue().split())
    source = base64.b64encode(compact.encode()).decode()
    return (
        f'<img src="data:image/svg+xml;base64,{source}" alt="{html.escape(alt)}" '
        f'data-value="{html.escape(text)}"{" hidden" if hidden else ""} '
        'style="max-width:100%;height:auto">'
    )
