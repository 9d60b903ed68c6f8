"""Execute every chapter once, then build the site from what came out.

    python book/build.py                   execute what changed, then build the site
    python book/build.py --execute-only    stop before the site

Execution is the gate. Each notebook of ``_toc.yml`` is run from top to bottom by nbmake
and is kept under ``.cache/executed/KEY/`` only if it raised nothing, wrote nothing to
stderr and stayed within its time. KEY covers what its outputs depend on: the notebook,
the code of the package that it imports, the records that this reads, and the installed
versions of the libraries that this imports. The site is then built, with warnings as
errors, from a staged copy of the book in which nothing is left to run.

Environment: ``CHAPTER_SECONDS``, the longest a chapter may take (90). Raise it on a
slow machine.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import nbformat
import yaml
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
EXECUTED = ROOT / ".cache" / "executed"
STAGE = ROOT / ".cache" / "stage"
BUILD = ROOT / "_build"
HTML = BUILD / "html"
BUILT_FROM = BUILD / "built-from"  # digest of the stage that HTML was built from

CHAPTER_SECONDS = float(os.environ.get("CHAPTER_SECONDS", "90"))
PACKAGES = ("numpy", "pandas", "scikit-learn", "matplotlib")  # torch names itself
RUNNERS = ("ipykernel", "nbclient", "nbmake")  # what executes a chapter
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class BookError(Exception):
    """The book cannot be built. The message is written for the person at the screen."""


@dataclass(frozen=True)
class Execution:
    """How one chapter was run: what the page on hardware and versions shows."""

    chapter: str
    seconds: float  # wall clock, start of the kernel included
    when: str  # UTC, to the minute
    machine: dict[str, str | int]  # hardware and versions


# --- what there is to execute ---------------------------------------------------------


def chapters() -> list[Path]:
    """The notebooks that ``_toc.yml`` names, in reading order, appendices behind."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [path for file in files if (path := ROOT / f"{file}.ipynb").exists()]


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below ``folder``, in a fixed order, less what Python compiles."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def digest(paths: Iterable[Path], *words: str) -> str:
    """24 hex digits of sha256 over ``words``, and names and contents of ``paths``."""
    sha = hashlib.sha256("\0".join(words).encode())
    for path in paths:
        content = path.read_bytes()
        sha.update(f"\0{path.relative_to(ROOT)}\0{len(content)}\0".encode())
        sha.update(content)
    return sha.hexdigest()[:24]


def key(chapter: Path) -> str:
    """All that the outputs of ``chapter`` depend on, as the name of a folder."""
    code, records, libraries = dependencies(chapter)
    words = [f"{path.relative_to(ROOT)} {meaning(path.read_text())}" for path in code]
    words += [f"{name} {installed(name)}" for name in [*libraries, *RUNNERS]]
    return digest([chapter, *records], platform.python_version(), *words)


def dependencies(chapter: Path) -> tuple[list[Path], list[Path], list[str]]:
    """What a chapter imports, directly or through others: by reading, not running.

    Returns:
        Modules of the package; the records that these or the chapter name; and the
        libraries, by the names they are imported by.
    """
    cells = nbformat.read(chapter, as_version=4).cells
    lines = "\n".join(c.source for c in cells if c.cell_type == "code").splitlines()
    magic = re.compile(r"^(\s*)[%!].*")  # IPython's; something must stand in its block
    waiting = [references(ast.parse("\n".join(magic.sub(r"\1pass", x) for x in lines)))]
    code: set[Path] = set()
    names: set[str] = set()
    texts: set[str] = set()
    while waiting:
        imported, text = waiting.pop()
        names |= imported
        texts |= text
        for path in {path for name in imported for path in modules(name)} - code:
            code.add(path)
            waiting.append(references(parsed(path.read_text())))
    records = [ROOT / "figures" / "recorded" / f"{text}.json" for text in texts if text]
    tops = {name.partition(".")[0] for name in names} - {"recsys_edu"}
    libraries = tops - set(sys.stdlib_module_names)
    return sorted(code), sorted(filter(Path.is_file, records)), sorted(libraries)


def references(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Dotted names that code imports, wherever it does, and the short texts in it.

    A text may name a record, or a module that is imported by its name.
    """
    names, texts = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise BookError(f"cannot follow 'from .' on line {node.lineno}")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"recsys_edu(\.\w+)+", node.value):
                names.add(node.value)
            elif re.fullmatch(r"\w+(\.json)?", node.value):
                texts.add(node.value.removesuffix(".json"))
    return names, texts


def modules(name: str) -> Iterator[Path]:
    """The package's files that are run to import a dotted name, which may be below."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1) if parts[0] == "recsys_edu" else ():
        path = ROOT.joinpath(*parts[:n])
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                yield file


@cache
def parsed(source: str) -> ast.Module:
    """The syntax tree of a module, without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [each for each in body if not is_text(each)] or [ast.Pass()]
    return tree


def is_text(node: ast.stmt) -> bool:
    """Whether a statement is a string and nothing else: a docstring, say."""
    return isinstance(node, ast.Expr) and isinstance(
        getattr(node.value, "value", None), str
    )


@cache
def meaning(source: str) -> str:
    """A digest of what code does: comments, docstrings and layout are left out."""
    return hashlib.sha256(ast.dump(parsed(source)).encode()).hexdigest()


@cache
def installed(library: str) -> str:
    """The version of what ``import library`` imports, or "absent"."""
    try:
        return metadata.version(distributions().get(library, [library])[0])
    except metadata.PackageNotFoundError:
        return "absent"


@cache
def distributions() -> dict[str, list[str]]:
    """Name of a module -> the distributions that hold it."""
    return {k: sorted(v) for k, v in metadata.packages_distributions().items()}


def require_this_checkout() -> None:
    """Chapters import ``recsys_edu``, and it must be the code that ``key`` reads."""
    spec = importlib.util.find_spec("recsys_edu")
    where = Path(spec.origin).parent if spec and spec.origin else None
    if where != ROOT / "recsys_edu":
        found = f"is at {where}" if where else "is not installed"
        raise BookError(
            f"recsys_edu {found}, and the book is made of this checkout's: "
            f"{sys.executable} -m pip install -e {ROOT}"
        )


# --- execution ------------------------------------------------------------------------


def run_nbmake(notebook: Path) -> None:
    """Execute ``notebook`` in place with the Python that runs this script."""
    # An ini file of its own keeps the repository's pytest settings out of this run.
    notebook.with_name("pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--nbmake", "--overwrite", "--nbmake-kernel=python3"]
    command += [f"--nbmake-timeout={CHAPTER_SECONDS:.0f}", str(notebook)]
    # The tests call this script too: what pytest told them is not for this run.
    env = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    # "python3" is then the kernel of this environment, whatever the user has installed.
    env |= {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PATH": ""}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    if run.returncode != 0:
        raise BookError(ANSI.sub("", run.stdout + run.stderr).strip())


def require_clean(notebook: nbformat.NotebookNode) -> None:
    """No output may be an error or stderr, even where a tag of the cell allows it."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                error = f"{output.ename}: {output.evalue}"
                raise BookError(f"cell {cell.id} raised {error}")
            if output.get("name") == "stderr":
                raise BookError(f"cell {cell.id} wrote to stderr:\n{output.text}")


def execute(chapter: Path) -> None:
    """Run ``chapter`` and keep it under its key; on BookError nothing is kept."""
    from recsys_edu.bench import environment  # imports torch, which takes seconds

    kept = EXECUTED / key(chapter)
    with tempfile.TemporaryDirectory(prefix="running-", dir=EXECUTED) as scratch:
        notebook = Path(shutil.copy(chapter, scratch))
        start = time.perf_counter()
        run_nbmake(notebook)
        seconds = time.perf_counter() - start
        if seconds > CHAPTER_SECONDS:
            raise BookError(
                f"took {seconds:.0f} s, and a chapter has {CHAPTER_SECONDS:.0f} s; "
                f"on a slow machine set CHAPTER_SECONDS={2 * seconds:.0f}"
            )
        executed = nbformat.read(notebook, as_version=4)
        require_clean(executed)
        for cell in executed.cells:
            cell.metadata.pop("execution", None)  # nbmake's timings differ on every run

        record = Execution(
            chapter=chapter.stem,
            seconds=round(seconds, 1),
            when=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
            machine=environment() | {name: metadata.version(name) for name in PACKAGES},
        )
        finished = Path(scratch) / "finished"
        finished.mkdir()
        nbformat.write(executed, finished / chapter.name)
        (finished / "execution.json").write_text(json.dumps(asdict(record), indent=1))
        finished.rename(kept)  # whole or not at all, also when killed


def execute_all() -> None:
    """Run every chapter that has no execution for its key, with a line for each."""
    require_this_checkout()
    names = chapters()
    for number, chapter in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {chapter.stem} ... ", end="", flush=True)
        if (EXECUTED / key(chapter)).exists():
            print("cached")
            continue
        start = time.perf_counter()
        try:
            execute(chapter)
        except BookError as error:
            print("failed")
            raise BookError(f"{chapter.name}: {error}") from error
        print(f"{time.perf_counter() - start:.0f} s")


# --- the staged book ------------------------------------------------------------------


def stamp_chapter(notebook: nbformat.NotebookNode, path: Path, repository: str) -> None:
    """Fill in the repository's address and put the Colab link under the title."""
    slug = repository.removeprefix("https://github.com/")
    published = f"github/{slug}/blob/gh-pages/_sources/{path}"
    link = f"[Open in Colab](https://colab.research.google.com/{published})"
    title, _, rest = notebook.cells[0].source.partition("\n")
    notebook.cells[0].source = f"{title}\n\n{link}\n{rest}"
    for cell in notebook.cells:
        cell.source = cell.source.replace("git+REPOSITORY", f"git+{repository}")


def execution_table(executions: list[Execution]) -> str:
    """The tables of the page on hardware and versions, in Markdown."""
    lines = ["| chapter | seconds | executed (UTC) |", "| --- | ---: | --- |"]
    lines += [f"| {e.chapter} | {e.seconds:.0f} | {e.when} |" for e in executions]
    # One table for each machine and set of versions; most often it is one.
    for machine in {str(e.machine): e.machine for e in executions}.values():
        lines += ["", "| executed with | |", "| --- | --- |"]
        lines += [f"| {name} | {value} |" for name, value in machine.items()]
    return "\n".join(lines) + "\n"


def clock_table(record: Path) -> str:
    """The front page's table of counted FLOPs, in Markdown, from the record of them."""
    from recsys_edu.units import humanize

    columns = ("item", "request", "candidate", "whole")
    lines = ["| design | item | request | candidate | all |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for row in json.loads(record.read_text())["runs"]:
        # FLOPs all: the unit stands above the table, and a phone has no room for it.
        counts = [humanize(row[column], "").strip() for column in columns]
        lines.append(f"| {row['model']} | {' | '.join(counts)} |")
    return "\n".join(lines) + "\n"


def stage() -> None:
    """Lay out in ``.cache/stage`` the book as Jupyter Book is to see it."""
    shutil.rmtree(STAGE, ignore_errors=True)
    skip = shutil.ignore_patterns("build.py", "__pycache__")
    shutil.copytree(ROOT / "book", STAGE / "book", ignore=skip)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, STAGE)

    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    repository = config["repository"]["url"].rstrip("/")
    for page in (STAGE / "book").glob("*.md"):
        page.write_text(page.read_text().replace("REPOSITORY", repository))

    executions = []
    (STAGE / "chapters").mkdir()
    for chapter in chapters():
        kept = EXECUTED / key(chapter)
        notebook = nbformat.read(kept / chapter.name, as_version=4)
        path = chapter.relative_to(ROOT)
        stamp_chapter(notebook, path, repository)
        nbformat.write(notebook, STAGE / path)
        record = json.loads((kept / "execution.json").read_text())
        executions.append(Execution(**record))
    generated = STAGE / "book" / "_generated"
    generated.mkdir()
    (generated / "execution.md").write_text(execution_table(executions))
    counts = ROOT / "figures" / "recorded" / "clocks.json"
    if counts.exists():  # a page that includes the table fails without it
        (generated / "clock_table.md").write_text(clock_table(counts))


# --- the site -------------------------------------------------------------------------


def build_site() -> None:
    """Build ``_build/html`` from the stage, from nothing, with warnings as errors.

    A second build over Sphinx's own cache would not repeat the warnings of pages that
    did not change, and so pass where the first one failed. Hence all or nothing: a
    stage that was built without a warning stands, anything else is built from nothing.
    """
    stamp = digest([*files_below(STAGE), ROOT / "constraints.txt"])
    if not (BUILT_FROM.exists() and BUILT_FROM.read_text() == stamp):
        print("building the site ... ", end="", flush=True)
        shutil.rmtree(BUILD, ignore_errors=True)
        start = time.perf_counter()
        command = [str(Path(sys.executable).with_name("jupyter-book")), "build"]
        command += [str(STAGE), "--path-output", str(ROOT)]
        command += ["-W", "-n", "--keep-going", "-q"]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode != 0:
            print("failed")
            raise BookError(ANSI.sub("", run.stderr + run.stdout).strip())
        BUILT_FROM.write_text(stamp)
        print(f"{time.perf_counter() - start:.0f} s")
    print(f"The book is at {HTML / 'index.html'}")


def main() -> None:
    """Run the command line; exit with status 1 and a message if the book fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--execute-only", action="store_true", help="build no site")
    arguments = parser.parse_args()
    EXECUTED.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(EXECUTED / "lock"):  # one build at a time in one checkout
            execute_all()
            if not arguments.execute_only:
                stage()
                build_site()
    except BookError as error:
        sys.exit(f"\n{error}")


if __name__ == "__main__":
    main()
