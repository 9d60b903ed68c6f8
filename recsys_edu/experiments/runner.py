"""Runs an experiment: ``python -m recsys_edu.experiments NAME [MODEL ...]``.

Each row is written as soon as it is done, with the date and the commit, to
``figures/recorded/NAME.unfinished``; when the last one is there, the file becomes
``NAME.json``. So a kill loses one row, and a record is never half there. With names of
models behind it, only their rows are made anew, on the machine of the others.

The same command goes on after a kill: rows of this commit, machine and PyTorch are not
run again; those of a finished record neither, unless ``--again`` asks for it. A package
that differs from its commit could be any: its rows are marked "-dirty", and always run
again.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import pkgutil
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import pandas as pd
import torch

from recsys_edu import experiments
from recsys_edu.bench import environment
from recsys_edu.experiments import record
from recsys_edu.progress import progress

TAKES = re.compile(r"\bTakes ([^.]+)\.")
ORIGIN = ("date", "commit")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: lists the experiments, or runs one and prints its rows.

    Args:
        arguments: those of this process if None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m recsys_edu.experiments",
        description="Runs an experiment and records it. Without a name, lists them.",
    )
    parser.add_argument("name", nargs="?", help="the experiment")
    parser.add_argument("models", nargs="*", help="run these alone; all if none")
    parser.add_argument(
        "--again", action="store_true", help="run what this commit has recorded, too"
    )
    given = parser.parse_args(arguments)
    there = overview()
    if given.name is None:
        width = max(map(len, there))
        for name, (what, takes) in there.items():
            print(f"{name:{width}}  {what} ({takes})")
        return
    if given.name not in there:
        parser.error(f"no experiment {given.name!r}: there are {', '.join(there)}")
    torch.set_num_threads(1)  # of every run: what is recorded fits any machine's cores
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch.profiler logs its start
    module = importlib.import_module(f"{experiments.__name__}.{given.name}")
    rows = run(module, given.models, again=given.again)
    print(f"\n{table(rows, key_of(module))}\n")
    line = {"experiment": given.name, "provenance": environment(), "runs": rows}
    print(json.dumps(line))


def overview() -> dict[str, tuple[str, str]]:
    """Name of each experiment -> what it measures, and how long it takes.

    Read from the source: nothing is imported.
    """
    found = {}
    for folder in experiments.__path__:
        for module in pkgutil.iter_modules([folder]):
            tree = ast.parse((Path(folder) / f"{module.name}.py").read_text())
            defined = {getattr(node, "name", None) for node in tree.body}
            if "runs" in defined:
                text = ast.get_docstring(tree) or ""
                takes = TAKES.search(" ".join(text.split()))
                first = text.partition("\n")[0]
                found[module.name] = first, takes[1] if takes else "time unknown"
    return found


def key_of(module: ModuleType) -> tuple[str, ...]:
    """The columns that tell rows apart; none if they are measured side by side."""
    return getattr(module, "KEY", ())


def run(
    module: ModuleType, names: Sequence[str] = (), *, again: bool = False
) -> list[dict]:
    """Runs what is not recorded yet, records it row by row, and returns all rows.

    Args:
        names: see :mod:`recsys_edu.experiments`; rows of others stay as they are.
        again: run also what the record has of this commit and machine. What a kill
            left unfinished is taken up in any case.

    Raises:
        ValueError: rows of others were recorded on another machine, or with another
            PyTorch.
    """
    name, key = module.__name__.rpartition(".")[2], key_of(module)
    here, machine = record.origin(), environment()

    def keyed(rows: Iterable[dict]) -> dict[tuple, dict]:
        return {tuple(row[column] for column in key): row for row in rows}

    def current(rows: list[dict], provenance: dict) -> list[dict]:
        """Those that this run would only repeat."""
        clean = provenance == machine and not here["commit"].endswith("-dirty")
        return [row for row in rows if clean and row["commit"] == here["commit"]]

    def asked(row: dict) -> bool:
        if not (names and key):
            return True
        if hasattr(module, "asked"):
            return module.asked(row, names)
        return row["model" if "model" in key else key[0]] in names

    path = record.target() / f"{name}.json"
    unfinished = path.with_suffix(".unfinished")
    old, made_on = record.read(path)
    others = [row for row in old if not asked(row)]
    if others and made_on != machine:
        raise ValueError(
            f"{name} was recorded in another environment, {made_on}: record all of it "
            f"again with `python -m recsys_edu.experiments {name}`"
        )
    repeated = [row for row in old if asked(row)]
    finished = [] if again else current(repeated, made_on)
    if finished and not (key or names):
        print(f"recorded at commit {here['commit']}; --again measures again")
        return finished
    pool = current(*record.read(unfinished)) if key else []
    rows = keyed(finished) | keyed(filter(asked, pool)) if key else {}
    if rows:
        print(f"{len(rows)} rows are there from commit {here['commit']}", flush=True)
    todo = module.runs(names, dict(rows)) if key else module.runs(names)
    total = max(len(repeated) - len(rows), 0)  # if it is as many as last time
    with progress(todo, unit=" rows", total=total or None) as bar:
        for row in bar:
            bar.set_postfix_str(" ".join(str(row[c]) for c in key), refresh=False)
            row = row | here
            # A row may come again: a piece that a kill cut off is measured as a whole.
            rows |= keyed([row]) if key else {(len(rows),): row}
            pool.append(row)
            record.save(unfinished, pool, machine)
    done = others + list(rows.values())
    record.save(path, done, machine)
    if rest := [row for row in pool if not asked(row)]:
        record.save(unfinished, rest, machine)
    else:
        unfinished.unlink(missing_ok=True)
    return done


def table(rows: list[dict], key: Sequence[str]) -> str:
    """Rows as text, aligned, those of the same columns together; of seeds the mean.

    Args:
        key: the columns that tell the rows apart.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        row = {column: value for column, value in row.items() if column not in ORIGIN}
        groups.setdefault(tuple(row), []).append(row)
    texts = []
    for group in groups.values():
        frame = pd.DataFrame(group)
        if "seed" in key:
            same = frame.groupby([c for c in key if c != "seed"], sort=False)
            mean = same.mean(numeric_only=True).drop(columns="seed")
            frame = mean.assign(seeds=same.size()).reset_index()
        texts.append(frame.to_string(index=False, float_format="{:.4g}".format))
    return "\n\n".join(texts)
