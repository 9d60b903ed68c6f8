"""The built book, served on this machine, and a browser that reads it."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and keeps silent about it."""

    def log_message(self, *args: Any) -> None:
        """Says nothing: the tests watch the requests in the browser."""


@pytest.fixture(scope="session")
def html() -> Path:
    """The folder of the site, built now if it is not up to date."""
    command = [sys.executable, str(ROOT / "book" / "build.py")]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        pytest.fail(f"the book does not build:\n{run.stdout}\n{run.stderr}")
    return ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def site(html: Path) -> Iterator[str]:
    """The address of the site, with a slash at its end."""
    handler = functools.partial(QuietHandler, directory=str(html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.fail("no browser: apt-get install chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])


def open_page(browser: Browser, *, width: int, mode: str = "light") -> Page:
    """A page ``width`` pixels wide whose reader has chosen ``mode``."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    for name in ("mode", "theme"):  # where the site's theme keeps the choice
        context.add_init_script(f"localStorage.setItem('{name}', '{mode}')")
    return context.new_page()


def settle(page: Page) -> None:
    """Waits until the page has loaded and its maths is set."""
    page.wait_for_load_state("networkidle")
    page.evaluate("window.MathJax?.startup?.promise")


# Facts about the article, read in one go. Code and set maths may look like anything, so
# the text leaves them out.
FACTS = """() => {
  const article = document.querySelector(".bd-article, .bd-search-container");
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  let text = "";
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!parent.closest("pre, code, script, style, mjx-container"))
      text += walker.currentNode.data;
  }
  const all = (selector) => [...article.querySelectorAll(selector)];
  return {
    text,
    h1: all("h1").length,
    maths: all(".math").map((node) => ({
      text: node.textContent.slice(0, 60),
      set: node.querySelector("mjx-container") !== null
        && node.querySelector("mjx-merror, [data-mjx-error]") === null,
    })),
    images: all("img").map((image) => ({
      source: image.src.slice(0, 60),
      alt: image.alt,
      caption: image.closest("figure:has(figcaption)")
        ?.querySelector("figcaption").textContent.trim() ?? "",
      loaded: image.complete && image.naturalWidth > 0,
    })),
    errors: all(".stderr, .traceback, .system-message, .problematic").length,
    links: [...document.querySelectorAll("a[href]")].map((link) => link.href),
  };
}"""

# How far the page scrolls sideways with every fold open, what sticks out, and which box
# hides a part of what it holds and does not show it by fading out (custom.css).
OVERFLOW = """async () => {
  document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
  const frame = () => new Promise(requestAnimationFrame);
  await frame(); await frame(); await frame();
  const width = document.documentElement.clientWidth;
  const article = document.querySelector(".bd-article, .bd-search-container");
  const out = [...article.querySelectorAll("*")].filter(
    (node) => node.getBoundingClientRect().right > width + 1
  );
  const text = article.querySelector("p, h1").getBoundingClientRect();
  return {
    by: document.documentElement.scrollWidth - width,
    culprits: out.slice(0, 3).map((node) => node.outerHTML.slice(0, 100)),
    margin: text.left,
    silent: [...article.querySelectorAll("*")].filter((box) => {
      const style = getComputedStyle(box);
      if (box.clientWidth === 0 || style.maskImage !== "none") return false;
      if (box.matches("mjx-container")) { // beside it stands a copy that nobody sees
        const drawn = box.querySelector("mjx-math").getBoundingClientRect();
        return drawn.right > box.getBoundingClientRect().right + 4;
      }
      return box.scrollWidth > box.clientWidth + 4 && style.overflowX !== "visible"
        && !box.closest(".math, .visually-hidden");
    }).map((box) => box.outerHTML.slice(0, 100)),
  };
}"""


@dataclass
class Visit:
    """What one page did and held: wide in light mode, then on a dark phone."""

    complaints: list[str] = field(default_factory=list)  # console, errors, requests
    facts: dict[str, Any] = field(default_factory=dict)
    overflow: dict[str, Any] = field(default_factory=dict)
    inaccessible: list[str] = field(default_factory=list)


def watch(page: Page, site: str, complaints: list[str]) -> None:
    """Notes whatever the page complains about, and keeps it off the network."""

    def decide(route: Any) -> None:
        if route.request.url.startswith(site):
            route.continue_()
        else:
            complaints.append(f"asks for {route.request.url}")
            route.abort()

    def note_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"console: {message.text}")

    def note_response(response: Any) -> None:
        if response.status >= 400:
            complaints.append(f"{response.status} for {response.url}")

    page.route("**/*", decide)
    page.on("console", note_console)
    page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
    page.on("requestfailed", lambda it: complaints.append(f"failed: {it.url}"))
    page.on("response", note_response)


# Without preload: axe would fetch the style sheets once more, by wrong addresses.
AXE_OPTIONS = {"resultTypes": ["violations"], "preload": False}


def accessibility(page: Page) -> list[str]:
    """axe-core's serious and critical findings."""
    violations = Axe().run(page, options=AXE_OPTIONS).response["violations"]
    return [
        f"{found['id']}: {found['help']}\n  "
        + "\n  ".join(node["html"][:200] for node in found["nodes"][:4])
        for found in violations
        if found["impact"] in ("serious", "critical")
    ]


@pytest.fixture(scope="session")
def visit(site: str, browser: Browser) -> Any:
    """Visits a page of the site, once; later calls return what was seen."""
    wide = open_page(browser, width=1280)
    phone = open_page(browser, width=390, mode="dark")
    current: list[str] = []
    for page in (wide, phone):
        watch(page, site, current)

    @functools.cache
    def visit_once(path: str) -> Visit:
        current.clear()
        seen = Visit()
        wide.goto(site + path)
        settle(wide)
        seen.facts = wide.evaluate(FACTS)
        seen.inaccessible = accessibility(wide)
        phone.goto(site + path)
        settle(phone)
        seen.overflow = phone.evaluate(OVERFLOW)
        seen.inaccessible += accessibility(phone)
        seen.complaints = list(current)
        return seen

    return visit_once
