"""The old forms compute what the new ones do; so a ratio compares like with like."""

from dataclasses import replace

import pytest
import torch

from recsys_edu.data.tasks import rating
from recsys_edu.encoders.append import AppendEncoder
from recsys_edu.encoders.hstu import HSTU
from recsys_edu.experiments import forms

TIMED = [what for what in forms.SIZES if what != forms.MEMORY]


@pytest.fixture
def tiny(world, monkeypatch):
    """Every line, at sizes that say nothing, in a second or two."""
    log = world.log
    monkeypatch.setattr(forms, "task", lambda *_: rating(log))
    monkeypatch.setattr(forms, "world", lambda: log)
    monkeypatch.setattr("recsys_edu.experiments.latency.world", lambda: log)
    known = replace(forms.MODELS["HSTU"], left_out=("user_id",))  # no occupation here
    monkeypatch.setattr(forms, "MODELS", {"HSTU": known})
    monkeypatch.setattr(forms, "M", 5)
    monkeypatch.setattr(forms, "MICRO_BATCHES", (2, 5))
    monkeypatch.setattr(forms, "ROUNDS", 1)
    monkeypatch.setattr(forms, "SIZES", dict.fromkeys(forms.SIZES, (7,)))
    monkeypatch.setattr(forms, "memory", lambda n: {"new_megabytes": n})


def test_every_old_form_gives_what_the_new_one_gives(tiny):
    rows = list(forms.runs())
    assert [row["what"] for row in rows] == list(forms.SIZES)
    for row in rows:
        if row["what"] == forms.MEMORY:
            assert row["new_megabytes"] == row["N"] == 7
            continue
        assert row["error"] < 64 * torch.finfo(torch.float32).eps, row
        assert row["bar"] is None
        assert row["low"] == row["times"] == row["high"] > 0
        assert row["times"] == pytest.approx(
            row["old_seconds"] / row["new_seconds"], rel=1e-2
        )


@pytest.mark.parametrize("what", ["append-cross request", "HSTU training"])
def test_the_error_is_seen(tiny, monkeypatch, what):
    """A form that computes something else is no form of the same thing."""
    broken = forms.old_form

    def off(model):
        model = broken(model)
        for weight in model.parameters():
            weight.data.mul_(1.01)
        return model

    monkeypatch.setattr(forms, "old_form", off)
    [row] = forms.runs([what])
    assert row["error"] > 1e-3


def test_the_old_form_is_a_copy_with_the_same_weights():
    for model in (AppendEncoder(8), HSTU(8)):
        old = forms.old_form(model)
        assert type(old) is forms.OLD[type(model)] and type(model) is not type(old)
        pairs = zip(old.parameters(), model.parameters(), strict=True)
        assert all(torch.equal(a, b) and a is not b for a, b in pairs)


def test_rows_that_are_there_are_not_measured_again(tiny):
    what = "append-cross extend"
    assert list(forms.runs([what], done={(what, 7)})) == []


def test_a_form_that_is_none_is_named():
    with pytest.raises(KeyError, match=r"no form \['flash'\]; there are \['append"):
        next(forms.runs(["flash"]))


def test_the_largest_size_of_this_process_is_read(tiny):
    assert forms.peak("new", 7) > 50
