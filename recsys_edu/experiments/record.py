"""Records of long runs: one row a run, and the machine they ran on.

``python -m recsys_edu.experiments NAME`` writes ``figures/recorded/NAME.json``, which
the wheel carries; :func:`load` reads it wherever the package is.
"""

from __future__ import annotations

import datetime
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import recsys_edu
from recsys_edu.files import written_whole

_INSTALLED = Path(__file__).parent / "recorded"  # the wheel carries the records here
_CHECKOUT = Path(__file__).parents[2] / "figures" / "recorded"
FOLDER = _INSTALLED if _INSTALLED.exists() else _CHECKOUT


@dataclass(frozen=True)
class Record:
    """Runs that were recorded: one row a run, and what they depend on.

    Example:
        >>> quality = load("quality")
        >>> quality.runs.groupby("model").auc.mean().idxmin()
        'naive DLRM'
    """

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
    rows, provenance = read(path)
    return Record(pd.DataFrame(rows), provenance)


def read(path: Path) -> tuple[list[dict], dict]:
    """Rows and provenance of a file; none of either if it is not there."""
    if not path.exists():
        return [], {}
    content = json.loads(path.read_text())
    return content["runs"], content["provenance"]


def save(path: Path, rows: list[dict], provenance: dict) -> None:
    """Writes the file whole or not at all, a row a line, so that diffs can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    with written_whole(path) as partial:
        partial.write_text(
            f'{{"provenance": {json.dumps(provenance, indent=2)},\n'
            f'"runs": [\n  {lines}\n]}}\n'
        )


def target() -> Path:
    """The folder to write to: the checkout's, or ``recorded`` where there is none."""
    return Path("recorded") if _INSTALLED.exists() else FOLDER


def origin() -> dict[str, str]:
    """Today's date, and the commit, with "-dirty" behind it if the package differs.

    Where the package is installed, its version stands for the commit.
    """
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    commit = f"v{recsys_edu.__version__}"
    if not _INSTALLED.exists():
        package = Path(recsys_edu.__file__).parent
        commit = _git(package, "rev-parse", "--short=7", "HEAD") or commit
        # Records lie elsewhere: writing one does not make the next one dirty.
        if _git(package, "status", "--porcelain", "--", "."):
            commit += "-dirty"
    return {"date": date, "commit": commit}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
