"""Every chapter keeps the contract, and the contract catches each way to break it."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys_edu import units

from .contract import (
    RULES,
    SETUP,
    SKELETON,
    SOLUTION_PROMPTS,
    prose,
    sentences,
    typed_results,
    violations,
)

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
APPENDICES = sorted((ROOT / "book").glob("*.ipynb"))
OF_CHAPTERS = {"skeleton", "slider", "exercises"}  # an appendix may do without

Notebook = dict[str, Any]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_keeps_the_contract(chapter: Path) -> None:
    found = violations(json.loads(chapter.read_text()))
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("appendix", APPENDICES, ids=lambda path: path.stem)
def test_appendix_keeps_the_rest_of_it(appendix: Path) -> None:
    notebook = json.loads(appendix.read_text())
    found = [each for each in violations(notebook) if each.rule not in OF_CHAPTERS]
    assert not found, "\n".join(map(str, found))
    assert len(notebook["cells"]) <= 40


def test_no_two_figures_of_the_book_share_a_name() -> None:
    names = [
        figure["name"]
        for path in (*CHAPTERS, *APPENDICES)
        for cell in json.loads(path.read_text())["cells"]
        if "name" in (figure := cell["metadata"].get("mystnb", {}).get("figure", {}))
    ]
    assert len(names) == len(set(names)) > len(CHAPTERS), sorted(names)


def test_there_are_chapters() -> None:
    assert CHAPTERS and APPENDICES, "none was found, so none was checked"
    assert set(RULES) >= OF_CHAPTERS


# --- a notebook that keeps every rule, and ways to break each -------------------------


def markdown(id: str, source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": id, "metadata": {}, "source": source}


def code(id: str, source: str, **metadata: Any) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "id": id,
        "metadata": metadata,
        "source": source,
        "outputs": [],
        "execution_count": None,
    }


def good_notebook() -> Notebook:
    """A tiny chapter with every section and every kind of cell."""
    cells = [markdown("title", "# Ten out of a million\n\nA promise. One minute.")]
    for label in SKELETON:
        cells.append(
            markdown(label.lower().replace(" ", "-").strip("?-"), f"## {label}")
        )
        cells[-1]["id"] = "".join(c for c in cells[-1]["id"] if c.isalnum() or c == "-")
    by_id = {cell["id"]: position for position, cell in enumerate(cells)}

    figure = {
        "mystnb": {
            "figure": {"caption": "The curves cross."},
            "image": {"alt": "Two lines, one rising faster."},
        }
    }
    after = {
        "you-will": [
            code("setup", SETUP, tags=["setup"]),
            markdown("parameters-text", "Sizes."),
            code("parameters", "n, m = 5, 3", tags=["parameters"]),
        ],
        "naive": [
            code(
                "scale-of",
                inspect.getsource(units.scale_of),
                tags=["pkg:recsys_edu.units.scale_of"],
            )
        ],
        "they-are-the-same": [code("same", "assert n == 5")],
        "the-figure": [
            code("plot", "ax.plot([n, m])", **figure),
            markdown("move-it", "Move it."),
            code("explore", "viz.slider(draw, [1, 2], label='N')"),
        ],
        "takeaways": [
            code("print-takeaways", "display(Markdown(f'One read: {n}. Two.'))")
        ],
        "exercises": [
            cell
            for k in range(1, 5)
            for cell in (
                markdown(f"exercise-{k}", f"### Exercise {k}: count\n\nCount it."),
                code(f"attempt-{k}", "answer = None"),
                code(
                    f"solution-{k}",
                    f"# @title Solution {k}\nanswer = 42",
                    tags=["hide-cell"],
                    cellView="form",
                    mystnb=dict(SOLUTION_PROMPTS),
                ),
            )
        ],
    }
    for id in sorted(after, key=by_id.__getitem__, reverse=True):
        cells[by_id[id] + 1 : by_id[id] + 1] = after[id]
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "cells": cells,
    }


def cell(notebook: Notebook, id: str) -> dict[str, Any]:
    return next(cell for cell in notebook["cells"] if cell["id"] == id)


def position(notebook: Notebook, id: str) -> int:
    return notebook["cells"].index(cell(notebook, id))


def source(id: str, text: str) -> Callable[[Notebook], None]:
    """Replaces the source of a cell."""
    return lambda notebook: cell(notebook, id).update(source=text)


def extra(id: str, text: str) -> Callable[[Notebook], None]:
    """Adds text to the end of a cell."""
    return lambda notebook: cell(notebook, id).update(
        source=cell(notebook, id)["source"] + text
    )


def metadata(id: str, **changes: Any) -> Callable[[Notebook], None]:
    """Changes metadata of a cell."""
    return lambda notebook: cell(notebook, id)["metadata"].update(changes)


def insert(after: str, *new: dict[str, Any]) -> Callable[[Notebook], None]:
    """Puts cells after a cell."""

    def change(notebook: Notebook) -> None:
        at = position(notebook, after) + 1
        notebook["cells"][at:at] = copy.deepcopy(list(new))

    return change


def remove(*ids: str) -> Callable[[Notebook], None]:
    """Takes cells out."""

    def change(notebook: Notebook) -> None:
        notebook["cells"] = [c for c in notebook["cells"] if c["id"] not in ids]

    return change


def swap(a: str, b: str) -> Callable[[Notebook], None]:
    """Exchanges two cells."""

    def change(notebook: Notebook) -> None:
        i, j = position(notebook, a), position(notebook, b)
        cells = notebook["cells"]
        cells[i], cells[j] = cells[j], cells[i]

    return change


NO_ALT = {"figure": {"caption": "See."}}
NO_CAPTION = {"image": {"alt": "Two lines."}}
TWINS = {"figure": {"caption": "Two lines."}, "image": {"alt": "Two lines."}}

BROKEN = [
    ("valid_notebook", lambda nb: cell(nb, "same").pop("outputs")),
    ("valid_notebook", lambda nb: nb.update(nbformat_minor=4)),
    ("valid_notebook", lambda nb: nb["metadata"].pop("kernelspec")),
    ("stable_ids", lambda nb: cell(nb, "same").update(id="plot")),
    ("stable_ids", lambda nb: cell(nb, "same").update(id="3fa85f64")),
    ("stable_ids", lambda nb: cell(nb, "same").update(id="b7d1c0aa")),
    ("stable_ids", lambda nb: cell(nb, "same").update(id="kXq93hTbLm2P")),
    ("nothing_executed", lambda nb: cell(nb, "same").update(execution_count=1)),
    (
        "nothing_executed",
        lambda nb: cell(nb, "same")["outputs"].append(
            {"output_type": "stream", "name": "stdout", "text": "5"}
        ),
    ),
    ("nothing_executed", metadata("same", execution={"shell.execute_reply": "now"})),
    ("nothing_executed", lambda nb: nb["metadata"].update(widgets={})),
    ("portable", extra("naive", "\n\n```{note}\nA directive.\n```")),
    ("portable", extra("naive", "\n\n:::{note}\nA directive.\n:::")),
    ("portable", extra("naive", "\n\nSee {cite}`zhai2024actions`.")),
    ("portable", extra("naive", "\n\n![badge](https://example.org/badge.svg)")),
    ("portable", extra("naive", '\n\n<img src="https://example.org/badge.svg">')),
    ("title", source("title", "Ten out of a million. One minute.")),
    ("title", source("title", "# Ten out of a million\n\nA promise.")),
    ("title", extra("naive", "\n\n# Another title")),
    ("skeleton", remove("the-question")),
    ("skeleton", swap("by-hand", "the-maths")),
    ("skeleton", insert("takeaways", markdown("own", "## A heading of its own"))),
    ("skeleton", source("naive", "Text first.\n\n## Naive")),
    ("setup_cell", extra("setup", "\nimport torch")),
    ("setup_cell", metadata("setup", tags=[])),
    ("parameters_cell", metadata("parameters", tags=[])),
    ("parameters_cell", source("parameters", "n = 5\nprint(n)")),
    ("small_cells", source("same", "n = 5\n" * 41)),
    ("small_cells", source("same", f"n = '{'5' * 90}'")),
    (
        "small_cells",
        lambda nb: [
            c.update(source=c["source"] + "\nn = 5" * 6)
            for c in nb["cells"]
            if c["cell_type"] == "code"
        ],
    ),
    ("text_before_code", insert("same", code("bare", "n = 6"))),
    ("asserts", source("same", "n == 5")),
    ("package_definitions", extra("scale-of", "\n    return 1.0, ''\n")),
    ("package_definitions", metadata("scale-of", tags=["pkg:recsys_edu.units.no"])),
    ("package_definitions", metadata("scale-of", tags=["pkg:recsys_edu.no.scale_of"])),
    ("package_definitions", source("scale-of", "import math")),
    ("package_definitions", extra("scale-of", "\nscale_of(3)\n")),
    ("figures", metadata("plot", mystnb=NO_ALT)),
    ("figures", metadata("plot", mystnb=NO_CAPTION)),
    ("figures", metadata("plot", mystnb=TWINS)),
    ("slider", remove("explore")),
    ("exercises", remove("exercise-4", "attempt-4", "solution-4")),
    ("exercises", source("exercise-2", "### Exercise 3: count")),
    ("exercises", remove("attempt-2")),
    ("exercises", metadata("solution-2", tags=[])),
    ("exercises", metadata("attempt-2", tags=["hide-cell"])),
    ("exercises", source("solution-2", "answer = 42")),
    ("exercises", metadata("solution-2", cellView="code")),
    ("exercises", metadata("solution-2", mystnb={})),
    ("no_typed_results", extra("naive", "\n\nIt took 41 ms.")),
    ("no_typed_results", source("print-takeaways", "Markdown(f'{n}: AUC 0.758')")),
    (
        "no_typed_results",
        metadata(
            "plot",
            mystnb={
                "figure": {"caption": "It is 22x faster."},
                "image": {"alt": "Two lines."},
            },
        ),
    ),
    ("voice", extra("naive", "\n\nWe simply read it.")),
    ("voice", extra("naive", "\n\nIt works!")),
    ("takeaways", extra("takeaways", "\n\nOne. Two. Three.")),
    ("takeaways", extra("takeaways", "\n\n- one\n- two\n- three")),
]


def test_a_good_notebook_passes() -> None:
    assert violations(good_notebook()) == []


@pytest.mark.parametrize(
    ("rule", "change"),
    BROKEN,
    ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(BROKEN)],
)
def test_a_broken_notebook_is_caught(
    rule: str, change: Callable[[Notebook], object]
) -> None:
    notebook = good_notebook()
    change(notebook)
    assert rule in {found.rule for found in violations(notebook)}


def test_every_rule_has_a_notebook_that_breaks_it() -> None:
    assert {rule for rule, _ in BROKEN} == set(RULES)


def test_docstrings_may_differ_from_the_package() -> None:
    notebook = good_notebook()
    text = cell(notebook, "scale-of")["source"]
    head, _, rest = text.partition('"""')
    shorter = head + '"""Shorter."""' + rest.partition('"""')[2]
    cell(notebook, "scale-of")["source"] = shorter
    assert violations(notebook) == []


# --- numbers in prose -----------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "The split is 80/10/10 by time.",
        "100,000 ratings of 1,682 items by 943 users, in 2 MB.",
        "A rating >= 4 is a success; N = 16,384 and M = 3.",
        "A 5 x 3 table; r x d numbers; 12 x 12 masks.",
        "Films of the 1990s; from 1997-09-20 to 1998-04-22.",
        "An AUC of 0.5 is chance.",
        "About two minutes on 2 cores; 5 epochs.",
        "Python 3.11 or later; seeds 0 to 4.",
        "It costs `0.16 ms` in code and $0.758$ in maths.",
        "Is a sort nearer to 2x, 20x or 600x a copy?",
        "It cuts latency by 30 % ([Hertel et al.](https://arxiv.org/abs/2412.06924)).",
        "p50 and p99 of the latency.",
        "Half of them; one in a hundred; ten times as long a list.",
        "```\nprinted: 41 ms\n```",
    ],
)
def test_a_fact_may_be_typed(text: str) -> None:
    assert typed_results(prose(text)) == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It took 41 ms.", "41 ms"),
        ("It took 0.16 µs a row.", "0.16 µs"),
        ("Training takes 30 s.", "30 s"),
        ("The card reads 3.35 TB/s.", "3.35 TB/s"),
        ("It has a peak of 989 TFLOP/s.", "989 TFLOP"),
        ("A forward pass is 12.3 MFLOP.", "12.3 MFLOP"),
        ("12,000 impressions/s on one thread.", "12,000 impressions/s"),
        ("It is 22x the floor.", "22x"),
        ("It is 1,200 times faster.", "1,200 times faster"),
        ("The leak is worth 3 %.", "3 %"),
        ("The test AUC is .712.", ".712"),
        ("The test AUC is 0.76.", "0.76"),
        ("| DIN | 0.772 |\n| --- | --- |", "0.772"),
        ("- one\n- 41 ms", "41 ms"),
        ("**41 ms** in all.", "41 ms"),
        ("Why? It took 41 ms.", "41 ms"),
        ("See [chapter 1](01_a_naive_dlrm.ipynb): 41 ms.", "41 ms"),
    ],
)
def test_a_result_may_not_be_typed(text: str, number: str) -> None:
    assert typed_results(prose(text)) == [number]


def test_sentences_are_counted_as_a_reader_would() -> None:
    text = "**One read.** Costs 1.5 reads, i.e. more. Why?\n\n- a\n- b\n\n> Quote."
    assert len(sentences(prose(text))) == 6
