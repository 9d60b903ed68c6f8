"""Records of long runs: written whole, read back, true to where they are from."""

import json
import re
import subprocess

import pytest
import torch

import recsys_edu
from recsys_edu.bench import environment
from recsys_edu.experiments import record

MADE = {"date": "2026-01-02", "commit": "abc"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty place for records."""
    monkeypatch.setattr(record, "FOLDER", tmp_path / "recorded")
    return tmp_path / "recorded"


def test_a_record_comes_back_with_where_it_is_from(folder):
    rows = [{"model": "DIN"} | MADE, {"model": "concat"} | MADE | {"commit": "def"}]
    record.save(folder / "toy.json", rows, environment())
    loaded = record.load("toy")
    assert loaded.runs.to_dict("records") == rows
    assert loaded.provenance == environment()
    for part in ("2 runs", "on 2026-01-02 with", "commit abc, def", torch.__version__):
        assert part in str(loaded)


def test_a_record_has_a_run_a_line_and_leaves_no_other_file(folder):
    record.save(folder / "toy.json", [{"seed": seed} for seed in range(3)], {})
    [path] = folder.iterdir()
    lines = [line for line in path.read_text().splitlines() if '"seed"' in line]
    assert [json.loads(line.rstrip(","))["seed"] for line in lines] == [0, 1, 2]


def test_rows_of_other_columns_keep_them_apart(folder):
    rows = [{"form": "a", "seconds": 1.0}, {"form": "b", "skipped": "no card"}]
    record.save(folder / "toy.json", rows, {})
    assert record.read(folder / "toy.json") == (rows, {})


def test_a_missing_record_names_the_command_that_makes_it(folder):
    with pytest.raises(
        FileNotFoundError, match=r"python -m recsys_edu\.experiments toy"
    ):
        record.load("toy")
    assert record.read(folder / "toy.json") == ([], {})


def test_a_record_made_on_a_gpu_names_it(folder):
    record.save(folder / "toy.json", [MADE], environment() | {"gpu": "T4"})
    assert "on T4 and" in str(record.load("toy"))


@pytest.mark.parametrize("path", sorted(record.FOLDER.glob("*.json")), ids=str)
def test_every_committed_record_can_be_read(path):
    loaded = record.load(path.stem)
    assert len(loaded.runs) and {"date", "commit"} <= {*loaded.runs}
    assert {*loaded.provenance} >= {"cpu", "torch", "torch threads"}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git repository with a package in it, which this one is taken for."""
    package = tmp_path / "recsys_edu"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in ("init --quiet", "add --all", "commit --quiet --message one"):
        subprocess.run([*git, *arguments.split()], check=True, cwd=tmp_path)
    monkeypatch.setattr(recsys_edu, "__file__", str(package / "__init__.py"))
    return tmp_path


def test_a_commit_is_marked_where_the_package_differs_from_it(checkout):
    clean = record.origin()["commit"]
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (checkout / "figures.json").write_text("a record, say")
    assert record.origin()["commit"] == clean
    (checkout / "recsys_edu" / "new.py").write_text("")
    assert record.origin()["commit"] == f"{clean}-dirty"


def test_an_installed_package_gives_its_version_and_writes_where_it_is_run(
    checkout, tmp_path, monkeypatch
):
    """Also inside somebody else's repository, whose commit says nothing of it."""
    monkeypatch.setattr(record, "_INSTALLED", tmp_path)
    assert record.origin()["commit"] == f"v{recsys_edu.__version__}"
    monkeypatch.chdir(tmp_path)
    assert record.target().resolve() == tmp_path / "recorded"
