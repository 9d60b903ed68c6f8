"""Figures: one style, the same bytes every time, sliders that stand alone."""

import base64
import html
import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib import colors, rcParams
from matplotlib import pyplot as plt

from recsys_edu import viz
from recsys_edu.bench import Timing
from recsys_edu.cost import Clock, Cost


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        viz.use_style()
        yield
    plt.close("all")


def draw(n):
    figure, axes = plt.subplots()
    axes.plot([0, n], [0, 1], label="line")
    axes.set_xlabel(f"up to {n}")
    axes.legend()
    return figure


def make(**changes):
    arguments = {
        "label": "history length N",
        "alt": lambda n: f'a line to "{n}"',
        "caption": "The line reaches N < inf.",
    }
    return viz.slider(draw, [8, 16, 32], **(arguments | changes)).data


class Elements(HTMLParser):
    """Every start tag of a page with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.all = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))

    def of(self, tag):
        return [attributes for name, attributes in self.all if name == tag]


def test_a_slider_has_a_frame_for_each_value_and_shows_the_first():
    frames = Elements(make()).of("img")
    assert [frame["data-value"] for frame in frames] == ["8", "16", "32"]
    assert ["hidden" in frame for frame in frames] == [False, True, True]
    assert [frame["alt"] for frame in frames] == [
        f'a line to "{n}"' for n in (8, 16, 32)
    ]


def test_a_slider_is_one_labelled_native_range():
    elements = Elements(make())
    (control,) = elements.of("input")
    assert control["type"] == "range"
    assert (control["min"], control["max"], control["value"]) == ("0", "2", "0")
    assert control["aria-label"] == "history length N"
    assert control["aria-valuetext"] == "8"
    assert elements.of("label")[0]["for"] == control["id"]
    assert elements.of("output")[0]["for"] == control["id"]
    assert "The line reaches N &lt; inf." in make()


def test_a_slider_names_its_values_as_told():
    page = Elements(make(text=lambda n: f"{n} events"))
    assert page.of("img")[1]["data-value"] == "16 events"
    assert page.of("input")[0]["aria-valuetext"] == "8 events"


def test_a_slider_asks_the_network_for_nothing():
    page = make()
    for source in (frame["src"] for frame in Elements(page).of("img")):
        kind, _, data = source.partition(",")
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(data).decode()
        assert "<svg" in svg
        references = set(re.findall(r'href="([^#"]+)', svg))
        assert not references
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)


def test_the_same_slider_is_the_same_bytes():
    assert make() == make()
    frames = [frame["src"] for frame in Elements(make()).of("img")]
    assert len(set(frames)) == 3
    for source in frames:
        svg = base64.b64decode(source.partition(",")[2]).decode()
        assert "<metadata" not in svg  # where matplotlib writes the date


def test_ids_differ_between_sliders_and_are_used_once():
    first, second = make(), make(caption="Another.")
    ids = [
        e["id"] for page in (first, second) for _, e in Elements(page).all if "id" in e
    ]
    assert len(ids) == len(set(ids)) == 4


def test_a_frame_stays_small():
    assert all(len(frame["src"]) < 40_000 for frame in Elements(make()).of("img"))


def test_a_slider_leaves_no_figure_open():
    make()
    assert plt.get_fignums() == []


def test_a_slider_needs_values():
    with pytest.raises(ValueError, match="at least one value"):
        viz.slider(draw, [], label="N", alt=str, caption="")


def test_the_script_names_no_globals():
    script = make().partition("<script>")[2].partition("</script>")[0].strip()
    assert script.startswith("{") and script.endswith("}")
    assert "window" not in script and "var " not in script


def test_models_look_different_from_each_other():
    looks = {name: viz.model_style(name) for name in viz.MODEL_COLOURS}
    assert len(looks) == 13
    assert [look["label"] for look in looks.values()] == list(looks)
    assert len({look["color"] for look in looks.values()}) == 13
    assert len({look["marker"] for look in looks.values()}) == 13
    for a, b in itertools.combinations(viz.MODEL_COLOURS.values(), 2):
        assert np.abs(np.subtract(colors.to_rgb(a), colors.to_rgb(b))).sum() > 0.15
    axes = plt.subplots()[1]
    axes.plot([0, 1], [0, 1], **viz.model_style("LIME-XOR"))
    assert axes.lines[0].get_color() == viz.MODEL_COLOURS["LIME-XOR"]


def test_an_unknown_model_is_an_error_that_names_the_known():
    with pytest.raises(
        KeyError, match="no style for model 'BERT'; known: naive DLRM, "
    ):
        viz.model_style("BERT")


def test_every_clock_has_a_colour_of_its_own():
    assert set(viz.CLOCK_COLOURS) == set(Clock)
    assert len(set(viz.CLOCK_COLOURS.values())) == 3


def test_a_clock_s_colour_means_nothing_else():
    viz.use_style()
    others = {
        *viz.MODEL_COLOURS.values(),
        *rcParams["axes.prop_cycle"].by_key()["color"],
    }
    assert not set(viz.CLOCK_COLOURS.values()) & others


def test_the_style_is_deterministic_and_can_be_set_twice():
    before = dict(rcParams)
    viz.use_style()
    assert dict(rcParams) == before
    assert rcParams["svg.hashsalt"] is not None
    # 12 pt text on a figure shrunk to the 340 px that a phone leaves it
    width_px = rcParams["figure.figsize"][0] * 96
    assert rcParams["xtick.labelsize"] * 96 / 72 * 340 / width_px >= 9.5


ROWS = {
    "naive DLRM": {
        Clock.ITEM: (Cost(0, 128), None, "item embedding"),
        Clock.CANDIDATE: (Cost(12_345, 4_100), Timing((8e-7,), 1), "interaction & MLP"),
    }
}


def cells(page):
    return [
        re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", cell))).strip()
        for cell in re.findall(r"<t[hd] [^>]*>(.*?)</t[hd]>", page, flags=re.DOTALL)
    ]


def test_the_clock_table_has_a_row_for_a_design_and_a_column_for_a_clock():
    assert cells(viz.clock_table(ROWS).data) == [
        "design",
        "item clock (per item)",
        "request clock (per request)",
        "candidate clock (per candidate)",
        "naive DLRM",
        "item embedding 0 FLOP , 128 B",
        "-",
        "interaction & MLP 12.3 kFLOP , 4.10 kB , 800 ns",
    ]


def test_the_clock_table_scrolls_in_a_box_that_a_keyboard_reaches():
    box = Elements(viz.clock_table(ROWS).data).all[0][1]
    assert "overflow-x:auto" in box["style"]
    assert (box["role"], box["tabindex"]) == ("region", "0")
    assert box["aria-label"]
