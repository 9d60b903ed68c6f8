"""Figures in one style: colours that mean the same everywhere, sliders, tables."""

from recsys_edu.units import humanize
from recsys_edu.viz.sliders import slider
from recsys_edu.viz.style import (
    CLOCK_COLOURS,
    MODEL_COLOURS,
    model_style,
    use_style,
)
from recsys_edu.viz.tables import clock_table

__all__ = [
    "CLOCK_COLOURS",
    "MODEL_COLOURS",
    "clock_table",
    "humanize",
    "model_style",
    "slider",
    "use_style",
]
