"""What the README shows works as it stands: in an empty folder, on a small log."""

import datetime
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
TEAS, COFFEES = ("oolong", "sencha", "assam"), ("espresso", "filter", "mocha")


@pytest.fixture
def log(tmp_path, monkeypatch):
    """A shop's log.csv: half of the users take tea and nothing else, as ann does."""
    rng = np.random.default_rng(0)
    start = datetime.datetime(2024, 4, 1)
    lines = ["user,item,timestamp,label"]
    for minute in range(6000):
        user = int(rng.integers(120))
        teas = user % 2 == 0
        item = str(rng.choice([*TEAS, *COFFEES]))
        taken = int((item in TEAS) == teas)
        when = start + datetime.timedelta(minutes=5 * minute)
        name = f"user {user}" if user else "ann"
        lines.append(f"{name},{item},{when:%Y-%m-%d %H:%M},{taken}")
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_a_csv_to_scores_saved_and_loaded(log, capsys):
    [block] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    statements = block.partition("\n\n")[2]
    assert len(statements.split("\n")) <= 14
    (log / "readme.py").write_text(block)
    runpy.run_path("readme.py")
    [[tea, coffee]] = eval(capsys.readouterr().out.splitlines()[-1])
    assert 0 < coffee < 0.5 < tea < 1
    assert (log / "ranker.safetensors").exists()


def test_every_command_of_the_readme_is_there():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
