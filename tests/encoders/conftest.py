"""Encoders that only these tests know, added to those of all tests."""

from pathlib import Path

import pytest

from recsys_edu.encoders.stca import STCA

MORE = {
    "STCA": STCA,
}


@pytest.fixture(scope="session", autouse=True)
def more_encoders(pytestconfig):
    """`make_model` and `ranker` make these too."""
    shared = Path(__file__).resolve().parents[1] / "conftest.py"
    pytestconfig.pluginmanager.get_plugin(str(shared)).ENCODERS.update(MORE)
