"""Records long runs as JSON, and reads the records back.

``python -m figures.record quality`` runs :mod:`figures.quality` again and replaces
``figures/recorded/quality.json``. A record is a list of runs, one row each, and where
they come from. It is written after every run, so that a kill loses one.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from recsys_edu.bench import environment
from recsys_edu.progress import progress

FOLDER = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Record:
    """Runs that were recorded: one row a run, and what they depend on."""

    runs: pd.DataFrame
    provenance: dict[str, str | int]

    def __str__(self) -> str:
        origin = self.provenance
        return (
            f"Recorded on {origin['date']} with torch {origin['torch']} on "
            f"{origin['cpu']}, {origin['torch threads']} thread(s), at commit "
            f"{origin['commit']}: {len(self.runs)} runs."
        )


def load(name: str) -> Record:
    """The record ``name``.

    Raises:
        FileNotFoundError: there is none; the message gives the command that makes it.
    """
    path = FOLDER / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"no record: run `python -m figures.record {name}`")
    record = json.loads(path.read_text())
    return Record(pd.DataFrame(record["runs"]), record["provenance"])


def save(name: str, runs: list[dict]) -> None:
    """Writes the record whole or not at all, with the provenance of this process."""
    path = FOLDER / f"{name}.json"
    partial = path.with_suffix(".partial")
    FOLDER.mkdir(exist_ok=True)
    lines = ",\n  ".join(json.dumps(run) for run in runs)  # one run a line: diffs read
    partial.write_text(
        f'{{"provenance": {json.dumps(provenance(), indent=2)},\n'
        f'"runs": [\n  {lines}\n]}}\n'
    )
    partial.replace(path)


def provenance() -> dict[str, str | int]:
    """The environment, today's date, and the commit, marked if files differ from it."""
    folder = FOLDER.parent
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {**environment(), "date": date, "commit": commit or "unknown"}


def main() -> None:
    """Runs a module of this folder and records what its ``runs()`` yields."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "name", help="a module of figures/ with runs(), such as quality"
    )
    name = parser.parse_args().name
    runs: Iterator[dict] = importlib.import_module(f"figures.{name}").runs()
    done: list[dict] = []
    for run in progress(runs, unit=" runs"):
        done.append(run)
        save(name, done)


if __name__ == "__main__":
    main()
