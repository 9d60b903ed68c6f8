"""What an object was made with is what makes it again."""

import copy
import pickle

import pytest
from torch import nn

from recsys_edu.configured import Configured
from recsys_edu.encoders.append import AppendEncoder
from recsys_edu.encoders.lime import LimeXOR
from recsys_edu.encoders.pooling import MeanPooling
from recsys_edu.positions import TimeGap


class Base(Configured):
    def __init__(self, size, *, depth=1, colour="red"):
        self.made = size, depth, colour


class Passes(Base):
    def __init__(self, size, extra=0, **options):
        super().__init__(size, **options)


class Decides(Base):
    def __init__(self, extra):
        super().__init__(2 * extra, depth=9)


@pytest.mark.parametrize(
    "made, config",
    [
        (Base(3), dict(size=3, depth=1, colour="red")),
        (Base(size=3, colour="blue"), dict(size=3, depth=1, colour="blue")),
        (Passes(3, depth=2), dict(size=3, extra=0, depth=2, colour="red")),
        (Decides(4), dict(extra=4)),
        (MeanPooling(), {}),
        (TimeGap(8), dict(d=8)),
    ],
)
def test_the_arguments_are_remembered_and_make_another(made, config):
    assert made.config == config
    again = type(made)(**made.config)
    assert again.config == config and getattr(again, "made", 0) == getattr(
        made, "made", 0
    )


def test_defaults_of_base_classes_are_among_them():
    assert AppendEncoder(8, heads=4).config == dict(
        d=8, causal=True, reads_itself=False, layers=2, heads=4, dropout=0.1
    )
    assert {"layers", "heads", "form", "r", "qk", "phi"} <= LimeXOR(
        8, r=2
    ).config.keys()


def test_copies_remember_too():
    encoder = AppendEncoder(8, layers=1)
    for copied in (copy.copy(encoder), copy.deepcopy(encoder)):
        assert copied.config == encoder.config and isinstance(copied, nn.Module)
    assert pickle.loads(pickle.dumps(encoder)).config == encoder.config
