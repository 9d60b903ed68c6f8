"""Encoders that only these tests know, added to those of all tests."""

from functools import partial
from pathlib import Path

import pytest

from recsys_edu.encoders.concat import ConcatEncoder
from recsys_edu.encoders.lime_sum import LimeSum
from recsys_edu.encoders.pooling import LengthOnly
from recsys_edu.encoders.stca import STCA

MORE = {
    "length": lambda d, **size: LengthOnly(d, exact=3),
    "concat, mean": partial(ConcatEncoder, read="mean"),
    "concat, wide": partial(ConcatEncoder, wide=True),
    "concat, wide, mean": partial(ConcatEncoder, wide=True, read="mean"),
    "STCA": STCA,
    "LIME-sum": lambda d, layers, **size: LimeSum(d, r=3, **size),
}


@pytest.fixture(scope="session", autouse=True)
def more_encoders(pytestconfig):
    """`make_model` and `ranker` make these too."""
    shared = Path(__file__).resolve().parents[1] / "conftest.py"
    pytestconfig.pluginmanager.get_plugin(str(shared)).ENCODERS.update(MORE)
