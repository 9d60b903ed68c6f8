"""The built book in a real browser: every page, as a reader meets it."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pytest
import yaml
from matplotlib import pyplot as plt
from playwright.sync_api import Browser, Page, expect

from recsys_edu.cost.clocks import Clock
from recsys_edu.viz import CLOCK_COLOURS

from .conftest import ROOT, Visit, open_page, settle

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
DOCUMENTS = [
    TOC["root"],
    *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]),
]
CHAPTERS = [name for name in DOCUMENTS if name.startswith("chapters/")]
PAGES = [f"{name}.html" for name in DOCUMENTS]
GENERATED = ["genindex.html", "search.html?q=history"]

RAW_MARKUP = re.compile(
    r"\$\$|\\\(|\\\[|\\begin\{"  # maths that was not set
    r"|```|:::|\{[a-z:]+\}|^:\w+:"  # directives and roles that were not read
    r"|REPOSITORY",
    re.MULTILINE,
)


@pytest.fixture
def page(site: str, browser: Browser) -> Page:
    """A fresh wide page on the site's first page."""
    page = open_page(browser, width=1280)
    page.goto(site)
    settle(page)
    yield page
    page.context.close()


# --- every page -----------------------------------------------------------------------


def test_the_site_holds_no_other_page(html: Path) -> None:
    pages = {str(path.relative_to(html)) for path in html.rglob("*.html")}
    pages = {path for path in pages if not path.startswith("_static/")}
    assert pages == {*PAGES, "index.html", "search.html", "genindex.html"}


@pytest.mark.parametrize("path", [*PAGES, *GENERATED])
def test_page_is_quiet_and_needs_no_network(
    visit: Callable[[str], Visit], path: str
) -> None:
    assert visit(path).complaints == []


@pytest.mark.parametrize("path", PAGES)
def test_page_shows_no_raw_markup_and_no_error(
    visit: Callable[[str], Visit], path: str
) -> None:
    facts = visit(path).facts
    assert RAW_MARKUP.findall(facts["text"]) == []
    assert facts["errors"] == 0
    assert facts["h1"] == 1


@pytest.mark.parametrize("path", PAGES)
def test_maths_is_set(visit: Callable[[str], Visit], path: str) -> None:
    maths = visit(path).facts["maths"]
    assert [node["text"] for node in maths if not node["set"]] == []
    if path.startswith("chapters/"):
        assert maths, "a chapter without maths"


@pytest.mark.parametrize("path", PAGES)
def test_every_image_is_there_described_and_captioned(
    visit: Callable[[str], Visit], path: str
) -> None:
    images = visit(path).facts["images"]
    for image in images:
        assert image["loaded"], image
        assert image["alt"].strip(), f"no alt text: {image}"
        assert image["alt"] != image["source"]
        assert image["caption"], f"no caption: {image}"
    if path.startswith("chapters/"):
        assert images, "a chapter without a figure"


@pytest.mark.parametrize("path", PAGES)
def test_page_fits_a_phone(visit: Callable[[str], Visit], path: str) -> None:
    overflow = visit(path).overflow
    assert overflow["by"] <= 0, overflow["culprits"]
    assert 12 <= overflow["margin"] <= 32, "text at the edge, or squeezed"


@pytest.mark.parametrize("path", PAGES)
def test_what_a_phone_cuts_off_shows_that_it_goes_on(
    visit: Callable[[str], Visit], path: str
) -> None:
    assert visit(path).overflow["silent"] == []


@pytest.mark.parametrize("path", [*PAGES, *GENERATED])
def test_page_is_accessible(visit: Callable[[str], Visit], path: str) -> None:
    """No serious or critical finding of axe-core: light and wide, dark and narrow."""
    found = visit(path).inaccessible
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", [*PAGES, *GENERATED])
def test_links_inside_the_site_lead_somewhere(
    visit: Callable[[str], Visit], html: Path, site: str, path: str
) -> None:
    for link in visit(path).facts["links"]:
        if not link.startswith(site):
            continue
        parts = urlsplit(link)
        target = html / unquote(parts.path.strip("/") or "index.html")
        assert target.is_file(), link
        if parts.fragment and target.suffix == ".html":
            assert f'id="{unquote(parts.fragment)}"' in target.read_text(), link


# --- the site as a whole --------------------------------------------------------------


def test_the_bare_address_leads_to_the_book(page: Page) -> None:
    expect(page).to_have_url(re.compile("/book/index.html$"))
    expect(page.locator(".bd-article h1")).to_contain_text("Three Clocks")


def test_search_finds_a_word(page: Page, site: str) -> None:
    page.keyboard.press("Control+k")
    page.locator(".search-button__search-container input").fill("calibration")
    page.keyboard.press("Enter")
    expect(page.locator("#search-results ul.search li").first).to_be_visible()
    expect(page.locator("#search-results")).to_contain_text("Glossary")


def test_what_fades_out_is_whole_at_its_end(site: str, browser: Browser) -> None:
    phone = open_page(browser, width=390)
    phone.goto(f"{site}{CHAPTERS[0]}.html")
    settle(phone)
    box = phone.locator(".bd-article pre.tc-cut").first
    box.evaluate("node => node.setAttribute('data-looked-at', '')")
    box.evaluate("node => { node.scrollLeft = node.scrollWidth; }")
    expect(phone.locator("[data-looked-at]")).not_to_have_class(re.compile("tc-cut"))
    phone.context.close()


def test_a_phone_shows_all_three_clocks_of_a_design(
    site: str, browser: Browser
) -> None:
    phone = open_page(browser, width=390)
    phone.goto(site)
    settle(phone)
    cells = phone.locator("table.tc-clocks tbody tr").last.locator("td")
    assert cells.count() == 4
    for cell in cells.all():
        box = cell.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    phone.context.close()


def test_dark_mode_darkens_figures(page: Page) -> None:
    """Their paper lets the page through, and what was black on it is light."""
    switch = page.locator(".theme-switch-button:visible")
    for _ in range(3):  # light, dark and the system's own take turns
        if page.locator("html").get_attribute("data-theme") == "dark":
            break
        switch.click()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    image = page.locator(".bd-article figure img").first
    shot = plt.imread(BytesIO(image.screenshot()))[..., :3]
    script = "node => getComputedStyle(node).backgroundColor"
    colour = page.locator("body").evaluate(script)
    paper = np.array([int(part) for part in re.findall(r"\d+", colour)]) / 255
    assert paper.max() < 0.2
    assert np.abs(shot[2, 2] - paper).max() < 0.02
    assert shot.min() >= paper.min() - 0.02 and shot.min(axis=2).max() > 0.8


@pytest.mark.parametrize("clock", list(Clock))
def test_a_clock_has_one_colour(clock: Clock) -> None:
    """The package, the style sheet and the picture on the first page agree."""
    colour = CLOCK_COLOURS[clock].lower()
    static = ROOT / "book" / "_static"
    css = (static / "custom.css").read_text().lower()
    assert f"--tc-{clock.value}: {colour};" in css
    picture = (static / "three_clocks.svg").read_text().lower()
    before, _, _ = picture.partition(f">{clock.label}<")
    assert re.findall(r'stroke="(#[0-9a-f]{6})"', before)[-1] == colour


# --- chapters -------------------------------------------------------------------------


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_slider_moves(page: Page, site: str, chapter: str) -> None:
    """By keyboard and by pointer: one frame is shown at a time, and it changes."""
    page.goto(f"{site}{chapter}.html")
    sliders = page.locator("figure.tc-slider")
    assert sliders.count() >= 1
    for slider in sliders.all():
        handle = slider.get_by_role("slider")
        frames = slider.locator("img:visible")
        expect(frames).to_have_count(1)
        seen = [(frames.get_attribute("src"), slider.locator("output").inner_text())]
        handle.press("ArrowRight")
        expect(frames).to_have_count(1)
        seen += [(frames.get_attribute("src"), slider.locator("output").inner_text())]
        handle.fill(handle.get_attribute("max"))
        expect(frames).to_have_count(1)
        seen += [(frames.get_attribute("src"), slider.locator("output").inner_text())]
        if handle.get_attribute("max") == "1":
            seen.pop()
        images, values = zip(*seen, strict=True)
        assert len(set(images)) == len(images), "a frame that looks like another"
        assert len(set(values)) == len(values), "the number beside the slider stays"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_folded_solutions_open(page: Page, site: str, chapter: str) -> None:
    page.goto(f"{site}{chapter}.html")
    summaries = page.get_by_text("Show solution").locator("xpath=ancestor::summary")
    assert summaries.count() >= 4
    for summary in summaries.all():
        solution = summary.locator("xpath=..").locator("pre").first
        expect(solution).to_be_hidden()
        summary.click()
        expect(solution).to_be_visible()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_opens_in_colab(page: Page, site: str, chapter: str) -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    slug = config["repository"]["url"].removeprefix("https://github.com/")
    colab = "https://colab.research.google.com/github/"
    right = f"{colab}{slug}/blob/gh-pages/_sources/{chapter}.ipynb"
    page.goto(f"{site}{chapter}.html")
    expect(page.locator("h1 + p > a")).to_have_attribute("href", right)
    button = page.locator(".dropdown-launch-buttons a")
    expect(button).to_have_attribute("href", right)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_download_gives_the_executed_notebook(
    page: Page, site: str, chapter: str
) -> None:
    page.goto(f"{site}{chapter}.html")
    link = page.locator("a.btn-download-source-button")
    response = page.request.get(link.evaluate("node => node.href"))
    notebook = nbformat.reads(response.text(), as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == sorted(counts) and counts[0] == 1, "not run from top to bottom"
    assert any(cell.outputs for cell in code)
    assert "git+REPOSITORY" not in response.text()
    assert not any("execution" in cell.metadata for cell in code)
