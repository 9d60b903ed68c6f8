"""Dry runs of what takes minutes: every line, at sizes that say nothing."""

import numpy as np
import pytest
import torch
from torch import nn

from recsys_edu.data import Features
from recsys_edu.data.interactions import InteractionLog
from recsys_edu.experiments import catalogue, latency, measure, peers, scoring

TIMES = {"seconds", "low", "high", "times", "times_low", "times_high"}


def keys(module, rows):
    return [tuple(row[column] for column in module.KEY) for row in rows]


@pytest.fixture(scope="module")
def scored():
    return list(scoring.runs(plan=scoring.TINY))


@pytest.fixture(scope="module")
def catalogued():
    return list(catalogue.runs(plan=catalogue.TINY))


def test_scoring_measures_all_it_promises(scored):
    assert keys(scoring, scored) == [
        ("amortization", "naive"),
        ("amortization", "amortized"),
        ("clocks", "matrix product"),
        ("clocks", "request clock"),
        ("clocks", "candidate clock"),
        ("memory", "amortized"),
    ]
    *timed, memory = scored
    assert all(row.keys() >= TIMES and row["seconds"] > 0 for row in timed)
    assert [row["times"] for row in timed if row["form"] == "amortized"] == [1]
    product, request, candidate = timed[2:]
    assert product["of_product"] == 1 and product["flops"] == 2 * 8**3
    assert request["of_product"] > 0 and candidate["code_bytes"] > 0
    assert "%" in request["where"] and "aten::" in request["where"]
    assert memory["megabytes"] >= 0 and (memory["N"], memory["M"]) == (6, 9)


def test_a_catalogue_is_built_opened_and_weighed(catalogued):
    types = ("float32", "float16", "int8")
    reads = ("open", "open, read 6 rows")
    lengths = ("N = 5", "N = 7")
    assert keys(catalogue, catalogued) == [
        *(("building", form) for form in types),
        *(("opening", form) for form in reads),
        *(("memory", form) for form in lengths),
    ]
    built = dict(zip(types, catalogued, strict=False))
    r = latency.R
    for row, size in zip(built.values(), (4 * r, 2 * r, r + 4), strict=True):
        assert size <= row["bytes_per_item"] < 1.1 * size  # with room for others
    assert built["float32"]["error"] == 0 < built["float16"]["error"]
    assert built["float16"]["error"] < built["int8"]["error"] < 1 / 254
    assert all(row["items_per_minute"] > 0 for row in built.values())
    assert all(row["megabytes"] >= 0 for row in catalogued[-2:])


@pytest.mark.parametrize("module", [scoring, catalogue])
def test_parts_can_be_named_and_are_not_measured_twice(module):
    parts = list(module.PARTS)
    calls = []
    stub = {
        part: lambda plan, part=part: calls.append(part) or iter([{"form": part}])
        for part in parts
    }
    plan = module.TINY
    assert len(list(measure.in_parts(stub, parts[:1], frozenset(), plan))) == 1
    assert calls == parts[:1]
    done = frozenset({(parts[0], parts[0])})
    assert len(list(measure.in_parts(stub, (), done, plan))) == len(parts) - 1
    assert calls == parts
    with pytest.raises(KeyError, match=r"no part \['other'\]"):
        list(module.runs(["other"]))


def test_a_part_that_breaks_leaves_no_row():
    def breaks(plan):
        yield {"form": "first"}
        raise RuntimeError("no memory")

    rows = measure.in_parts({"broken": breaks}, (), frozenset(), None)
    with pytest.raises(RuntimeError):
        next(rows)


def fill(megabytes):
    """Allocates, writes, and lets go of so much; before that, of more."""
    np.ones(2 * megabytes * 10**6, np.uint8).sum()
    return lambda: np.ones(megabytes * 10**6, np.uint8).sum()


def test_memory_is_what_a_call_adds_at_its_peak():
    row = measure.added_by(fill, 64)
    if "skipped" not in row:
        assert 60 < row["megabytes"] < 80


def test_elsewhere_than_on_linux_memory_is_skipped(monkeypatch):
    monkeypatch.setattr(measure.Path, "exists", lambda self: False)
    assert "Linux" in measure.added_by(fill, 1)["skipped"]


def test_latency_measures_a_piece_again_unless_all_its_rows_are_there():
    work = {"a": lambda: None, "LIME-XOR": lambda: None}
    where = ("M", 8, "ranker")
    half, whole = {(*where, "a")}, {(*where, name) for name in work}
    for done, left in ((set(), 2), (half, 2), (whole, 0)):
        rows = list(latency._rows(work, "LIME-XOR", frozenset(done), where))
        assert len(rows) == left
    assert dict(zip(latency.KEY, (*where, "a"), strict=True)).keys() <= {
        *next(latency._rows(work, "LIME-XOR", frozenset(), where))
    }


# --- peers ----------------------------------------------------------------------------


class Learner(nn.Linear):
    """A peer whose loss falls, or stays."""

    def __init__(self, learns):
        super().__init__(1, 1)
        self.loss, self.learns = 0.9, learns

    def turn(self):
        self.loss *= 0.2 if self.learns else 1.0
        return self.loss


def stub(name, learns=True, **options):
    """A library with one contender."""

    def library(sample, sizes):
        assert sample and sizes["item_id"] == 31
        assert {*sample[0]} >= {"item_id", "history", "age_group", "gender", "label"}
        model = Learner(learns)
        size = peers.impressions(sample)
        yield peers.Contender(name, "nothing", model, model.turn, size, **options)

    return library


def absent(sample, sizes):
    raise ModuleNotFoundError("No module named 'absent'")


@pytest.fixture(scope="module")
def small_log():
    """60 rows of four users, with the features that the peers read."""
    rng = np.random.default_rng(0)
    users = Features.fit(
        range(4),
        sparse={
            "user_id": range(4),
            "age_group": ["18", "25", "18", "35"],
            "gender": ["M", "F", "F", "M"],
            "occupation": ["a", "b", "a", "b"],
        },
    )
    return InteractionLog(
        user=rng.integers(0, 4, 60),
        item=rng.integers(0, 30, 60),
        timestamp=np.arange(60),
        label=np.tile([0, 1], 30).astype(np.float32),
        action=rng.integers(0, 2, 60),
        users=users,
        items=Features.fit(range(30), sparse={"item_id": range(30)}),
        item_titles=None,
        actions=(0, 1),
        name="small",
    )


def test_peers_train_in_turns_and_one_that_is_missing_says_how_to_get_it(
    small_log, monkeypatch
):
    libraries = {
        stub("Peer", library="torch"): "it is here",
        stub("Lazy peer", learns=False): "it is here",
        stub("Without a Transformer", transformer=False): "it is here",
        absent: "pip install absent",
    }
    monkeypatch.setattr(peers, "INSTALL", libraries)
    skipped, *rows = peers.runs(log=small_log, rounds=2)
    assert skipped["model"] == "absent" and "pip install absent" in skipped["skipped"]
    ours, _, peer, lazy, other = rows
    assert all(row.keys() >= TIMES | {"parameters", "first_loss"} for row in rows)
    assert ours["model"] == "append-cross, amortized" and ours["times"] == 1
    assert [row.get("bar") for row in rows] == [
        *(None, peers.OVER_LOOP, peers.OVER_PEER, None, None)
    ]
    assert peer["learns"] and not lazy["learns"] and other["learns"]
    assert peer["version"] == torch.__version__ and "version" not in lazy
    assert peer["parameters"] == 2


def test_peers_are_timed_all_at_once():
    with pytest.raises(ValueError, match="name none"):
        next(peers.runs(["append-cross"]))
