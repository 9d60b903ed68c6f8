"""Records long runs as JSON, and reads the records back.

``python -m recsys_edu.experiments quality`` runs :mod:`recsys_edu.experiments.quality` again and replaces
``figures/recorded/quality.json``; with names of models behind it, only their runs. A
record is a list of runs, one row each, and the machine they ran on. It is written after
every run, so that a kill loses one.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from recsys_edu.bench import environment
from recsys_edu.files import written_whole
from recsys_edu.progress import progress

_INSTALLED = Path(__file__).parent / "recorded"  # the wheel carries the records here
_CHECKOUT = Path(__file__).parents[2] / "figures" / "recorded"
FOLDER = _INSTALLED if _INSTALLED.exists() else _CHECKOUT


@dataclass(frozen=True)
class Record:
    """Runs that were recorded: one row a run, and what they depend on."""

    runs: pd.DataFrame
    provenance: dict[str, str | int]

    def __str__(self) -> str:
        machine = self.provenance
        days, commits = (sorted(set(self.runs[key])) for key in ("date", "commit"))
        gpu = "" if machine["gpu"] == "none" else f"{machine['gpu']} and "
        return (
            f"{len(self.runs)} runs, recorded on {', '.join(days)} with torch "
            f"{machine['torch']} on {gpu}{machine['cpu']}, {machine['torch threads']} "
            f"thread(s), at commit {', '.join(commits)}."
        )


def load(name: str) -> Record:
    """The record ``name``.

    Raises:
        FileNotFoundError: there is none; the message gives the command that makes it.
    """
    path = FOLDER / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(
            f"no record: run `python -m recsys_edu.experiments {name}`"
        )
    record = json.loads(path.read_text())
    return Record(pd.DataFrame(record["runs"]), record["provenance"])


def save(name: str, runs: list[dict]) -> None:
    """Writes the record whole or not at all, with the machine this process runs on."""
    FOLDER.mkdir(exist_ok=True)
    lines = ",\n  ".join(json.dumps(run) for run in runs)  # one run a line: diffs read
    with written_whole(FOLDER / f"{name}.json") as partial:
        partial.write_text(
            f'{{"provenance": {json.dumps(environment(), indent=2)},\n'
            f'"runs": [\n  {lines}\n]}}\n'
        )


def origin() -> dict[str, str]:
    """Today's date, and the commit, marked if files differ from it."""
    git = ["git", "-C", str(FOLDER.parent)]
    describe = [*git, "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": date, "commit": commit or "unknown"}


def kept(name: str, models: list[str]) -> list[dict]:
    """The recorded runs of all other models.

    Raises:
        ValueError: they were recorded on another machine or with another torch.
    """
    recorded = load(name)
    if recorded.provenance != environment():
        raise ValueError(
            f"{name} was recorded in another environment, {recorded.provenance}: "
            f"record all of it again with `python -m recsys_edu.experiments {name}`"
        )
    others = ~recorded.runs.model.isin(models)
    return recorded.runs[others].to_dict("records")


def main() -> None:
    """Runs a module of this folder and records what its ``runs(models)`` yields."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "name", help="a module of recsys_edu/experiments/ with runs(), such as quality"
    )
    parser.add_argument("models", nargs="*", help="record these alone; all if none")
    given = parser.parse_args()
    torch.set_num_threads(1)  # of every run: what is recorded fits any machine's cores
    runs = importlib.import_module(f"recsys_edu.experiments.{given.name}").runs(
        given.models
    )
    done = kept(given.name, given.models) if given.models else []
    here = origin()  # before the record itself makes the tree differ from its commit
    for run in progress(runs, unit=" runs"):
        done.append(run | here)
        save(given.name, done)
