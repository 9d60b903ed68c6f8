"""The gate: what may not become a green book, and what is not executed twice.

Each test builds a book of one tiny chapter with the real ``book/build.py``, copied into
a checkout of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[2]

CONFIG = """\
title: A tiny book
only_build_toc_files: true
execute: {execute_notebooks: "off"}
repository: {url: https://github.com/someone/somewhere}
"""
TOC = """\
format: jb-book
root: book/index
parts:
  - caption: Chapters
    chapters: [{file: chapters/00_tiny}]
"""


class Checkout:
    """A folder with all that ``book/build.py`` reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("book", "chapters", "recsys_edu"):
            (root / folder).mkdir()
        shutil.copy(ROOT / "book" / "build.py", root / "book")
        self.write("_config.yml", CONFIG)
        self.write("_toc.yml", TOC)
        self.write("constraints.txt", "")
        self.write("book/index.md", "# A tiny book\n\nSee REPOSITORY.\n")
        self.write("recsys_edu/__init__.py", "answer = 41\n")
        self.write(
            "recsys_edu/bench.py", "def environment():\n    return {'cpu': 'x'}\n"
        )
        self.chapter("import recsys_edu\nprint(recsys_edu.answer)")

    def write(self, path: str, text: str) -> None:
        (self.root / path).write_text(text)

    def chapter(self, source: str, **metadata: object) -> None:
        """Writes the one chapter, with one code cell."""
        cells = [
            nbformat.v4.new_markdown_cell("# A tiny chapter\n\nA promise.", id="title"),
            nbformat.v4.new_code_cell(source, id="only-cell", metadata=metadata),
        ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(
            cells=cells, metadata={"kernelspec": kernel}
        )
        nbformat.write(notebook, self.root / "chapters" / "00_tiny.ipynb")

    def build(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs the script as a person would."""
        return subprocess.run(
            [sys.executable, "book/build.py", *arguments],
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": str(self.root)} | environment,
            capture_output=True,
            text=True,
        )

    def kept(self) -> list[Path]:
        """The executed notebooks that a later build would use."""
        return list((self.root / ".cache" / "executed").glob("*/00_tiny.ipynb"))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    ("source", "tags", "limit", "said"),
    [
        ("1 / 0", [], "90", "ZeroDivisionError"),
        ("1 / 0", ["raises-exception"], "90", "ZeroDivisionError"),
        (
            "import sys\nprint(1, file=sys.stderr)",
            [],
            "90",
            "only-cell wrote to stderr",
        ),
        ("import time\ntime.sleep(60)", [], "2", "timeout"),
    ],
    ids=["crash", "crash-that-a-tag-allows", "stderr", "too-slow"],
)
def test_a_bad_chapter_never_passes(
    checkout: Checkout, source: str, tags: list[str], limit: str, said: str
) -> None:
    checkout.chapter(source, tags=tags)
    run = checkout.build(CHAPTER_SECONDS=limit)
    assert run.returncode != 0
    assert said.lower() in run.stderr.lower()
    assert "00_tiny.ipynb" in run.stderr
    assert not checkout.kept()
    assert not (checkout.root / "_build").exists()


def test_cells_that_are_slow_only_together_are_too_slow(checkout: Checkout) -> None:
    path = checkout.root / "chapters" / "00_tiny.ipynb"
    notebook = nbformat.read(path, as_version=4)
    source = "import time\ntime.sleep(1.5)"
    notebook.cells += [
        nbformat.v4.new_code_cell(source, id=f"sleep-{i}") for i in range(2)
    ]
    nbformat.write(notebook, path)
    run = checkout.build("--execute-only", CHAPTER_SECONDS="2")
    assert run.returncode != 0
    assert "CHAPTER_SECONDS=" in run.stderr
    assert not checkout.kept()


def test_an_execution_serves_until_the_package_changes(checkout: Checkout) -> None:
    first = checkout.build("--execute-only")
    assert first.returncode == 0, first.stderr
    assert "[1/1] 00_tiny ..." in first.stdout
    assert not (checkout.root / "_build").exists()
    assert "cached" in checkout.build("--execute-only").stdout

    checkout.write("recsys_edu/__init__.py", "answer = 42\n")
    assert "cached" not in checkout.build("--execute-only").stdout
    outputs = {
        nbformat.read(path, 4).cells[1].outputs[0].text for path in checkout.kept()
    }
    assert outputs == {"41\n", "42\n"}


def test_a_notebook_of_the_back_matter_is_executed_too(checkout: Checkout) -> None:
    toc = (
        TOC + "  - caption: Back\n    chapters: [{file: book/own}, {file: book/end}]\n"
    )
    checkout.write("_toc.yml", toc)
    checkout.write("book/end.md", "# The end\n")
    chapter = (checkout.root / "chapters" / "00_tiny.ipynb").read_text()
    checkout.write("book/own.ipynb", chapter.replace("A tiny chapter", "Your own"))
    run = checkout.build()
    assert run.returncode == 0, run.stderr
    assert "[2/2] own ..." in run.stdout
    source = checkout.root / "_build" / "html" / "_sources" / "book" / "own.ipynb"
    assert json.loads(source.read_text())["cells"][1]["outputs"]
    assert "/blob/gh-pages/_sources/book/own.ipynb" in source.read_text()


@pytest.fixture
def build(checkout: Checkout) -> Iterator[ModuleType]:
    """The script of the checkout, as a module."""
    script = checkout.root / "book" / "build.py"
    spec = importlib.util.spec_from_file_location("build_of_the_test", script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


CHAPTER = """\
%pip list
import recsys_edu.viz.lines as lines
from recsys_edu.experiments import record

record.load("quality")
"""
PACKAGE = {
    "viz/__init__.py": "",
    "viz/lines.py": "import torch\nfrom recsys_edu import units\n",
    "experiments/__init__.py": "",
    "experiments/record.py": "def load(name):\n    import recsys_edu.files\n",
    "units.py": "import importlib\n\nimportlib.import_module('recsys_edu.late')\n",
    "files.py": "",
    "late.py": "",
    "other.py": "",
}


@pytest.fixture
def large(checkout: Checkout) -> Checkout:
    """A chapter that imports some of the package, and loads one of two records."""
    for path, source in PACKAGE.items():
        (checkout.root / "recsys_edu" / path).parent.mkdir(exist_ok=True)
        checkout.write(f"recsys_edu/{path}", source)
    (checkout.root / "figures" / "recorded").mkdir(parents=True)
    for name in ("quality", "latency"):
        checkout.write(f"figures/recorded/{name}.json", "{}")
    checkout.chapter(CHAPTER)
    return checkout


RUN = "\nanswer = 42\n"


@pytest.mark.parametrize(
    ("path", "text", "matters"),
    [
        ("chapters/00_tiny.ipynb", "\n", True),
        ("recsys_edu/__init__.py", RUN, True),  # of the package that all lie in
        ("recsys_edu/viz/__init__.py", RUN, True),
        ("recsys_edu/viz/lines.py", RUN, True),
        ("recsys_edu/viz/lines.py", "\n# A comment.\n", False),
        ("recsys_edu/viz/lines.py", '\nx = 1\n"""What x is."""\n', True),
        ("recsys_edu/units.py", RUN, True),  # imported by what is imported
        ("recsys_edu/files.py", RUN, True),  # inside a function
        ("recsys_edu/late.py", RUN, True),  # by its name
        ("recsys_edu/other.py", RUN, False),
        ("recsys_edu/new.py", RUN, False),
        ("figures/recorded/quality.json", " ", True),
        ("figures/recorded/latency.json", " ", False),
        ("constraints.txt", "torch==1.0\n", False),
        ("recsys_edu/__pycache__/lines.pyc", "compiled", False),
    ],
)
def test_the_key_covers_what_a_result_depends_on_and_no_more(
    large: Checkout, build: ModuleType, path: str, text: str, matters: bool
) -> None:
    [chapter] = build.chapters()
    before = build.key(chapter)
    file = large.root / path
    file.parent.mkdir(exist_ok=True)
    file.write_text((file.read_text() if file.exists() else "") + text)
    assert (build.key(chapter) != before) == matters


def test_a_docstring_is_no_part_of_the_key(large: Checkout, build: ModuleType) -> None:
    [chapter] = build.chapters()
    keys = []
    for doc in ("one", "two"):
        functions = (
            f'"""{doc}"""\ndef load(name):\n    """{doc}"""\nx = 1\n"""{doc}"""\n'
        )
        large.write("recsys_edu/experiments/record.py", functions)
        keys.append(build.key(chapter))
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("library", "matters"), [("torch", True), ("nbmake", True), ("ruff", False)]
)
def test_the_key_covers_the_installed_versions(
    large: Checkout, build: ModuleType, monkeypatch: Any, library: str, matters: bool
) -> None:
    [chapter] = build.chapters()
    before, version = build.key(chapter), build.metadata.version

    def other(name: str) -> str:
        return "99.9" if name == library else version(name)

    monkeypatch.setattr(build.metadata, "version", other)
    build.installed.cache_clear()
    assert (build.key(chapter) != before) == matters


def test_every_chapter_of_the_book_is_understood() -> None:
    """What the chapters load is in their keys: all of it is found by reading them."""
    sys.path.insert(0, str(ROOT / "book"))
    build = importlib.import_module("build")
    sys.path.pop(0)
    for chapter in build.chapters():
        code, records, libraries = build.dependencies(chapter)
        loaded = re.findall(r'record\.load\(\\"(\w+)\\"\)', chapter.read_text())
        there = {path.stem for path in (ROOT / "figures" / "recorded").glob("*.json")}
        assert {*loaded} & there <= {path.stem for path in records}
        assert ROOT / "recsys_edu" / "viz" / "style.py" in code  # by way of colab
        assert {"torch", "numpy", "matplotlib"} <= {*libraries}


def test_the_package_of_another_checkout_is_refused(checkout: Checkout) -> None:
    elsewhere = checkout.root / "elsewhere"
    elsewhere.mkdir()
    shutil.move(checkout.root / "recsys_edu", elsewhere)
    run = checkout.build(PYTHONPATH=str(elsewhere))
    assert run.returncode != 0
    assert "pip install -e" in run.stderr


def test_the_site_is_stamped_and_built_from_the_execution(checkout: Checkout) -> None:
    run = checkout.build()
    assert run.returncode == 0, run.stderr
    html = checkout.root / "_build" / "html"
    assert str(html / "index.html") in run.stdout

    source = (html / "_sources" / "chapters" / "00_tiny.ipynb").read_text()
    notebook = json.loads(source)
    assert notebook["cells"][1]["outputs"][0]["text"] == ["41\n"]
    assert "execution" not in notebook["cells"][1]["metadata"]
    colab = "https://colab.research.google.com/github/someone/somewhere/blob/gh-pages/"
    assert f"{colab}_sources/chapters/00_tiny.ipynb" in source
    index = (html / "_sources" / "book" / "index.md").read_text()
    assert "See https://github.com/someone/somewhere." in index
    table = checkout.root / ".cache" / "stage" / "book" / "_generated" / "execution.md"
    assert "| 00_tiny |" in table.read_text() and "| cpu | x |" in table.read_text()

    again = checkout.build()
    assert "building the site" not in again.stdout
    assert str(html / "index.html") in again.stdout


def test_a_warning_fails_the_build_every_time(checkout: Checkout) -> None:
    checkout.write("book/index.md", "# A tiny book\n\n[Nowhere](nowhere.md)\n")
    for _ in range(2):
        run = checkout.build()
        assert run.returncode != 0
        assert "nowhere" in run.stderr
