"""What every chapter promises by its form, as rules over the notebook's JSON.

:func:`violations` runs them all. A rule is a generator of ``(cell id, message)`` for
what it finds wrong; its name is the rule's name. Nothing here runs a notebook: what the
cells compute is the business of the executed book.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat.validator

# The skeleton, in order: level-2 headings by how they begin, and whether a chapter may
# do without. A heading may go on after its label ("## By hand: five events"), a label
# may come again, and headings of a chapter's own may stand between "You will" and
# "Takeaways".
SKELETON = {
    "The question": True,
    "You will": True,
    "By hand": True,
    "Predict first": True,
    "The maths": True,
    "Naive": False,
    "Optimised": False,
    "They are the same": False,
    "Count, then time": False,
    "The figure": True,
    "Does it still rank?": False,
    "Takeaways": True,
    "Where this breaks": True,
    "Exercises": True,
    "Further reading": True,
}

SETUP = """\
import importlib.util, os

if importlib.util.find_spec("recsys_edu") is None:  # in Colab, or a notebook on its own
    source = os.environ.get("RECSYS_EDU_SOURCE", "git+REPOSITORY")
    %pip install -q {source}
from recsys_edu import colab

colab.setup()"""

SOLUTION_PROMPTS = {
    "code_prompt_show": "Show solution",
    "code_prompt_hide": "Hide solution",
}

# Numbers that only a run or a data sheet can give: times, rates, FLOPs, ratios, shares,
# and decimals such as an AUC. What remains free: counts, sizes, splits (80/10/10),
# thresholds, dates, and anything in code or maths.
RESULT = re.compile(
    r"""
    (?<![\w.,])(?!(?:19|20)\d0s\b)                          # not "the 1990s"
    \d[\d,]*(?:\.\d+)?
    (?: \s?(?:[nuµm]?s|sec|seconds?|milliseconds?)\b        # a time
      | \s?[kMGTP]?i?B/s\b                                  # a bandwidth
      | \s?[kMGTP]?FLOPs?\b                                 # work, or work per second
      | \s?\w+/s\b                                          # any other rate
      | \s?(?:%|per\s?cent\b)                               # a share
      | [x×](?![\w×])                                       # a ratio: 22x
      | \s(?:x|×|times)\s(?:faster|slower|cheaper|more|less|fewer|larger|smaller|the|as)
    )
    | (?<![\w.,])0?\.\d\d+                                  # 0.758 or .758
    """,
    re.VERBOSE,
)

BANNED_WORDS = re.compile(
    r"\b(?:simply|just|obviously|powerful|blazing|delves?|let's dive in"
    r"|in this section,? we will)\b|!",
    re.IGNORECASE,
)

PLOT_CALLS = frozenset(
    "bar barh errorbar fill_between hist imshow matshow plot scatter".split()
)


@dataclass(frozen=True)
class Violation:
    """One broken promise."""

    rule: str
    cell: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: cell {self.cell}: {self.message}"


class Cell:
    """A cell of the notebook with its source as one string."""

    def __init__(self, raw: dict[str, Any]) -> None:
        source = raw["source"]
        self.raw = raw
        self.id: str = raw.get("id", "without an id")
        self.source: str = source if isinstance(source, str) else "".join(source)
        self.metadata: dict[str, Any] = raw["metadata"]
        self.tags: list[str] = self.metadata.get("tags", [])
        self.is_code = raw["cell_type"] == "code"
        self.is_markdown = raw["cell_type"] == "markdown"

    @property
    def first_line(self) -> str:
        return self.source.partition("\n")[0]

    def headings(self, level: int) -> list[str]:
        """The texts of this Markdown cell's headings of one level."""
        if not self.is_markdown:
            return []
        text = without_fences(self.source)
        return re.findall(rf"^{'#' * level} +(.+?)\s*$", text, re.MULTILINE)

    def tree(self) -> ast.Module:
        """The cell's code as Python reads it, IPython's line magics left out."""
        lines = self.source.splitlines()
        magic = re.compile(r"^\s*[%!]")
        python = [magic.sub("pass  # ", line) for line in lines]
        return ast.parse("\n".join(python))


Finding = tuple[str, str]
Rule = Callable[[dict[str, Any], list[Cell]], Iterator[Finding]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Adds ``function`` to the contract."""
    RULES[function.__name__] = function
    return function


def violations(notebook: dict[str, Any]) -> list[Violation]:
    """Every broken promise of a notebook, given as its parsed JSON."""
    cells = [Cell(raw) for raw in notebook["cells"]]
    return [
        Violation(name, cell, message)
        for name, check in RULES.items()
        for cell, message in check(notebook, cells)
    ]


# --- the file -------------------------------------------------------------------------


@rule
def valid_notebook(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """Valid by the format's own schema, format 4.5 or later, for the python3 kernel."""
    for error in nbformat.validator.iter_validate(notebook):
        yield "-", f"not a valid notebook: {error.message[:200]}"
    if (notebook["nbformat"], notebook["nbformat_minor"]) < (4, 5):
        yield "-", "format older than 4.5 has no cell ids"
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        yield "-", "the kernelspec is not python3"


@rule
def stable_ids(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """Ids are unique and written by a person: diffs and error messages show them."""
    seen: set[str] = set()
    for cell in cells:
        if cell.id in seen:
            yield cell.id, "the id is used twice"
        seen.add(cell.id)
        words = re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cell.id)
        uuid = re.fullmatch(r"(?=.*\d)[0-9a-f]{8}(-[0-9a-f-]+)?", cell.id)
        if not words or uuid:
            yield cell.id, "the id is not lower-case words joined by hyphens"


@rule
def nothing_executed(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """Outputs, counts and timings are not committed."""
    if "widgets" in notebook["metadata"]:
        yield "-", "the notebook holds widget state"
    for cell in cells:
        if cell.raw.get("outputs") or cell.raw.get("execution_count") is not None:
            yield cell.id, "the cell holds an output or an execution count"
        if "execution" in cell.metadata:
            yield cell.id, "the cell's metadata holds timings"


@rule
def portable(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """Markdown is plain: it must read in Colab, JupyterLab and on GitHub too."""
    for cell in cells:
        if not cell.is_markdown:
            continue
        if re.search(r"^ *(?:```+|:::+) *\{", cell.source, re.MULTILINE):
            yield cell.id, "a MyST directive"
        if re.search(r"\{[a-z:-]+\}`", cell.source):
            yield cell.id, "a MyST role"
        if re.search(r"!\[[^\]]*\]\(http|<img[^>]+src=.http", cell.source):
            yield cell.id, "an image from the network"


# --- the skeleton ---------------------------------------------------------------------


def label_of(heading: str) -> str | None:
    """The skeleton's label that ``heading`` begins with."""
    for label in SKELETON:
        if re.match(rf"{re.escape(label)}(?!\w)", heading):
            return label
    return None


def sections(cells: list[Cell]) -> list[tuple[str, list[Cell]]]:
    """The cells under each level-2 heading, the heading's own cell included."""
    found: list[tuple[str, list[Cell]]] = []
    for cell in cells:
        if headings := cell.headings(2):
            found.append((headings[0], []))
        if found:
            found[-1][1].append(cell)
    return found


def section(cells: list[Cell], label: str) -> list[Cell]:
    """The cells of the sections under ``label``; none if the chapter has none."""
    return [
        cell
        for heading, members in sections(cells)
        if label_of(heading) == label
        for cell in members
    ]


@rule
def title(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """One title, in the first cell, and below it the minutes that a CPU takes."""
    titles = [cell.id for cell in cells for _ in cell.headings(1)]
    first = cells[0]
    if not first.first_line.startswith("# ") or titles != [first.id]:
        yield first.id, "the only level-1 heading is the first line of the first cell"
    if not re.search(r"\bminutes?\b", first.source):
        yield first.id, "the title cell does not say how many minutes the chapter takes"


@rule
def skeleton(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """The headings of SKELETON, in its order; each opens a cell of its own."""
    for cell in cells:
        headings = cell.headings(2)
        if headings and (len(headings) > 1 or not cell.first_line.startswith("## ")):
            yield cell.id, "a level-2 heading is not the first line of its own cell"

    order = list(SKELETON)
    headings = [heading for heading, _ in sections(cells)]
    labels = [label_of(heading) for heading in headings]
    for label, required in SKELETON.items():
        if required and label not in labels:
            yield "-", f"no section {label!r}"
    firsts = list(dict.fromkeys(label for label in labels if label))
    if firsts != sorted(firsts, key=order.index):
        yield "-", f"sections out of order: {firsts}"
    if {"You will", "Takeaways"} <= set(labels):
        body = range(labels.index("You will"), labels.index("Takeaways"))
        for position, heading in enumerate(headings):
            if labels[position] is None and position not in body:
                yield "-", f"{heading!r} stands outside the chapter's body"


@rule
def setup_cell(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """The first code cell is the setup cell, the same in every chapter."""
    code = [cell for cell in cells if cell.is_code]
    tagged = [cell for cell in cells if "setup" in cell.tags]
    if not code or tagged != code[:1]:
        yield "-", "the first code cell, and no other, carries the tag 'setup'"
    elif code[0].source != SETUP:
        yield code[0].id, "the setup cell differs from the contract's"


@rule
def parameters_cell(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """The second code cell holds the parameters: assignments of literals."""
    code = [cell for cell in cells if cell.is_code]
    tagged = [cell for cell in cells if "parameters" in cell.tags]
    if tagged != code[1:2]:
        yield "-", "the second code cell, and no other, carries the tag 'parameters'"
        return
    for statement in tagged[0].tree().body if tagged else []:
        if not isinstance(statement, ast.Assign):
            yield tagged[0].id, "a parameters cell holds assignments only"


# --- code -----------------------------------------------------------------------------


@rule
def small_cells(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """Code cells: median at most 6 lines, none over 40, at most 88 columns."""
    code = [cell for cell in cells if cell.is_code]
    heights = [len(cell.source.splitlines()) for cell in code]
    if heights and statistics.median(heights) > 6:
        median = statistics.median(heights)
        yield "-", f"the median code cell has {median} lines, more than 6"
    for cell, height in zip(code, heights, strict=True):
        if height > 40:
            yield cell.id, f"{height} lines, more than 40"
        widest = max((len(line) for line in cell.source.splitlines()), default=0)
        if widest > 88:
            yield cell.id, f"{widest} columns, more than 88"


@rule
def text_before_code(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """A code cell follows a Markdown cell; a folded solution follows its attempt."""
    for before, cell in zip([None, *cells], cells, strict=False):
        if not cell.is_code or "hide-cell" in cell.tags:
            continue
        if before is None or not before.is_markdown:
            yield cell.id, "no text before this code cell"


@rule
def asserts(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """A chapter asserts its own claims."""
    code = [cell for cell in cells if cell.is_code]
    if not any(re.search(r"\bassert(_\w+)?\b", cell.source) for cell in code):
        yield "-", "no cell asserts anything"


@rule
def package_definitions(
    notebook: dict[str, Any], cells: list[Cell]
) -> Iterator[Finding]:
    """A cell tagged pkg:NAME holds NAME as the package has it, docstrings aside."""
    for cell in cells:
        names = [tag[4:] for tag in cell.tags if tag.startswith("pkg:")]
        if not names:
            continue
        shown = {defined_name(node): node for node in cell.tree().body}
        shown = {name: node for name, node in shown.items() if name != "import"}
        for name in names:
            definition = package_definition(name)
            node = shown.pop(name.rpartition(".")[2], None)
            if definition is None:
                yield cell.id, f"the package has no {name}"
            elif node is None:
                yield cell.id, f"the cell does not define {name}"
            elif canonical(node) != canonical(definition):
                yield cell.id, f"{name} differs from the package's"
        if shown:
            yield cell.id, "the cell holds more than the definitions its tags name"


def defined_name(node: ast.stmt) -> str:
    """The name that a statement defines; "import" for imports."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return "import"
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return f"statement on line {node.lineno}"


def package_definition(name: str) -> ast.stmt | None:
    """The top-level definition ``recsys_edu.module.name`` in the package's source."""
    module, _, wanted = name.rpartition(".")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    body = ast.parse(Path(spec.origin).read_text()).body
    return next((node for node in body if defined_name(node) == wanted), None)


def canonical(node: ast.stmt) -> str:
    """The syntax tree as text, without docstrings, comments and layout."""
    for part in ast.walk(node):
        documented = isinstance(part, (ast.FunctionDef, ast.ClassDef))
        if documented and ast.get_docstring(part) is not None:
            part.body = part.body[1:]
    return ast.dump(node)


# --- figures --------------------------------------------------------------------------


@rule
def figures(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """A cell that plots has a caption and an alternative text in its metadata.

    A slider has them in its arguments. What a cell shows is only known once it has run,
    so the tests of the site look again, at every image.
    """
    for cell in cells:
        if not (cell.is_code and plots(cell.tree())):
            continue
        options = cell.metadata.get("mystnb", {})
        caption = options.get("figure", {}).get("caption", "").strip()
        alt = options.get("image", {}).get("alt", "").strip()
        if not caption or not alt:
            yield cell.id, "a plot without mystnb.figure.caption or mystnb.image.alt"
        elif caption == alt:
            yield cell.id, "the caption says what to see, the alt text what is drawn"


def plots(tree: ast.Module) -> bool:
    """Whether code outside function definitions calls matplotlib to draw."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            from_pyplot = isinstance(owner, ast.Name) and owner.id == "plt"
            if from_pyplot or node.func.attr in PLOT_CALLS:
                return True
    return False


@rule
def slider(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """A chapter has an interactive figure that needs no kernel."""
    if not any(cell.is_code and "slider(" in cell.source for cell in cells):
        yield "-", "no slider"


# --- exercises ------------------------------------------------------------------------


@rule
def exercises(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """Four to six exercises: a text, an attempt, a folded solution.

    The solution folds on the site (tag ``hide-cell``) and in Colab (a form with a
    title), and its fold says what it hides.
    """
    groups: list[list[Cell]] = []
    for cell in section(cells, "Exercises"):
        if cell.headings(3):
            groups.append([])
        if groups:
            groups[-1].append(cell)
    if not 4 <= len(groups) <= 6:
        yield "-", f"{len(groups)} exercises; a chapter has four to six"
    for number, group in enumerate(groups, start=1):
        heading = group[0]
        if not re.match(rf"### Exercise {number}\b", heading.source):
            yield heading.id, f"the heading does not begin '### Exercise {number}'"
        code = [cell for cell in group if cell.is_code]
        if len(code) != 2 or "hide-cell" in code[0].tags:
            yield heading.id, "an exercise has an attempt cell, then a solution cell"
            continue
        solution = code[1]
        if "hide-cell" not in solution.tags:
            yield solution.id, "a solution carries the tag 'hide-cell'"
        if solution.first_line != f"# @title Solution {number}":
            yield solution.id, f"a solution begins '# @title Solution {number}'"
        if solution.metadata.get("cellView") != "form":
            yield solution.id, "a solution has the metadata cellView: form"
        if solution.metadata.get("mystnb") != SOLUTION_PROMPTS:
            yield solution.id, f"a solution has the prompts {SOLUTION_PROMPTS}"


# --- prose ----------------------------------------------------------------------------


def without_fences(markdown: str) -> str:
    """Markdown less its fenced code blocks."""
    return re.sub(r"^(```+|~~~+).*?^\1", "", markdown, flags=re.MULTILINE | re.DOTALL)


def prose(markdown: str) -> str:
    """What a reader reads as language: no code, no maths, no images, no HTML tags.

    A link to a source becomes the mark §, any other link its text.
    """
    text = without_fences(markdown)
    text = re.sub(r"(`+).*?\1", " ", text, flags=re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", " ", text, flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", " ", text)
    text = re.sub(r"\[[^\]]*\]\(http[^)]*\)|<?https?://[^\s>)]+>?", "§", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"<!--.*?-->|</?[a-zA-Z][^>]*>", " ", text, flags=re.DOTALL)


def sentences(text: str) -> list[str]:
    """The sentences of prose; a table row, a list item, a heading count as one each."""
    found = []
    block = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+\.|\||>|#)\s?)")
    for part in block.split(text):
        joined = " ".join(part.split()).lstrip("#>-*+ ")
        found += re.split(r"(?<=[.!?])[*_\"')]*\s+(?![a-z])", joined)
    return [sentence for sentence in found if re.search(r"\w", sentence)]


def typed_results(text: str) -> list[str]:
    """The numbers in ``text`` that a run should have printed, or a source be given for.

    A question may offer numbers to choose from. A sentence that links to its source may
    quote the source's.
    """
    return [
        match[0].strip()
        for sentence in sentences(text)
        if not sentence.endswith("?") and "§" not in sentence
        for match in RESULT.finditer(sentence)
    ]


def printed_markdown(cell: Cell) -> Iterator[str]:
    """The text typed into ``Markdown(...)`` calls of a code cell; values become ▢."""
    for call in ast.walk(cell.tree()):
        is_call = isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if not (is_call and call.func.id == "Markdown" and call.args):
            continue
        text = call.args[0]
        if isinstance(text, ast.JoinedStr):
            parts = [getattr(part, "value", None) for part in text.values]
            yield "".join(part if isinstance(part, str) else "▢" for part in parts)
        elif isinstance(text, ast.Constant) and isinstance(text.value, str):
            yield text.value


@rule
def no_typed_results(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """Results and hardware constants are printed by cells, never typed into prose."""
    for cell in cells:
        texts = [cell.source] if cell.is_markdown else list(printed_markdown(cell))
        options = cell.metadata.get("mystnb", {})
        texts.append(options.get("figure", {}).get("caption", ""))
        texts.append(options.get("image", {}).get("alt", ""))
        for text in texts:
            for number in typed_results(prose(text)):
                yield cell.id, f"{number!r} is typed; print it, or link to its source"


@rule
def voice(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """None of the words that sell or belittle, and no exclamation marks."""
    for cell in cells:
        for match in BANNED_WORDS.finditer(prose(cell.source) * cell.is_markdown):
            yield cell.id, f"{match[0]!r} in prose"


@rule
def takeaways(notebook: dict[str, Any], cells: list[Cell]) -> Iterator[Finding]:
    """At most four sentences, typed or printed."""
    count = 0
    for cell in section(cells, "Takeaways"):
        texts = [cell.source] if cell.is_markdown else list(printed_markdown(cell))
        for text in texts:
            body = re.sub(r"^## .*$", "", text, flags=re.MULTILINE)
            count += len(sentences(prose(body).replace("▢", "1")))
    if count > 4:
        yield "-", f"{count} sentences of takeaways, more than four"
