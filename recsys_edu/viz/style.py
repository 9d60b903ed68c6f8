"""One look for every figure: the same colour for the same clock and the same model.

The clocks' palette is Okabe and Ito's, which people with colour-blindness can tell
apart; it means clocks and nothing else. Models have other colours. There are more of
them than colours that all can tell apart, so each also has a marker and a line style of
its own.
"""

from matplotlib import pyplot as plt

from recsys_edu.cost.clocks import Clock

CLOCK_COLOURS: dict[Clock, str] = {
    Clock.ITEM: "#009E73",
    Clock.REQUEST: "#0072B2",
    Clock.CANDIDATE: "#D55E00",
}
"""Colour of each clock: green (offline), blue (request), vermilion (candidate)."""

_MODEL_STYLES: dict[str, tuple[str, str, str]] = {
    # Related designs share a hue: append is blue, LIME green, compression brown.
    "naive DLRM": ("#000000", "o", ":"),
    "mean pooling": ("#767676", "s", ":"),
    "DIN": ("#E69F00", "^", "-"),
    "concat": ("#882255", "D", "-"),
    "append-self": ("#56B4E9", "v", "--"),
    "append-causal": ("#4477AA", "<", "-."),
    "append-cross": ("#00456B", ">", "-"),
    "two-tower": ("#B3A500", "h", ":"),
    "HSTU": ("#CC79A7", "*", "-"),
    "LIME-MHA": ("#44AA99", "P", "-"),
    "LIME-XOR": ("#117733", "X", "--"),
    "truncated MHA": ("#A6761D", "p", "--"),
    "LREA": ("#6B3E00", "d", "-."),
}

MODEL_COLOURS: dict[str, str] = {
    name: colour for name, (colour, _, _) in _MODEL_STYLES.items()
}
"""Colour of each model, by the name that the book's legends use."""


def model_style(name: str) -> dict[str, str]:
    """Keyword arguments that draw a model: `ax.plot(x, y, **model_style("DIN"))`.

    Returns colour, marker, line style and label.
    Raises KeyError, naming the known models, for any other name.
    """
    try:
        colour, marker, line = _MODEL_STYLES[name]
    except KeyError:
        known = ", ".join(_MODEL_STYLES)
        raise KeyError(f"no style for model {name!r}; known: {known}") from None
    return {"color": colour, "marker": marker, "linestyle": line, "label": name}


def use_style() -> None:
    """Set matplotlib's defaults for the book. Calling it again changes nothing.

    A figure is 5.2 in (500 px) wide, so that its 12 pt text is still 11 px high when
    a phone of 390 px shrinks it. Paper is white, which stays readable on dark pages.
    Figures hold glyphs as outlines and neither dates nor random ids: the same
    drawing gives the same bytes.
    """
    plt.rcParams.update(
        {
            "figure.figsize": (5.2, 3.2),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "svg.fonttype": "path",
            "svg.hashsalt": "three clocks",
            "font.family": "DejaVu Sans",  # ships with matplotlib
            "font.size": 12,
            "axes.titlesize": 12,
            "axes.titlelocation": "left",
            "axes.labelsize": 12,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
            "legend.fontsize": 11,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E0E0E0",
            "lines.linewidth": 2,
            "lines.markersize": 7,
            "axes.prop_cycle": plt.cycler(
                color=[
                    "#4477AA",
                    "#CC6677",
                    "#117733",
                    "#CC79A7",
                    "#E69F00",
                    "#56B4E9",
                    "#000000",
                ]
            ),
        }
    )
