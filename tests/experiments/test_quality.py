"""What is recorded of quality: the right models, judged by what they may read."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from recsys_edu.data import Features, Histories, InteractionLog, Split
from recsys_edu.experiments import quality, record
from recsys_edu.experiments.quality import _key, chosen, past_rate
from recsys_edu.metrics import difference


def row_of(model, rate, seed, ne, log="100K", task="next item"):
    key = {"log": log, "task": task, "model": model, "rate": rate, "seed": seed}
    return {**key, "validation_ne": ne}


@pytest.mark.parametrize("task", quality.TASKS)
def test_test_rows_see_as_many_events_as_training_rows(task):
    kinds = (quality.AMORTIZED, quality.BY_REQUEST, quality.SCORING)
    assert {kind[task].keywords["max_events"] for kind in kinds} == {quality.N}
    assert quality.ALONE[task].keywords["max_events"] == 0


def test_the_rate_is_chosen_on_validation_with_seed_0_alone():
    rows = [row_of("DIN", 1e-3, 0, 0.8), row_of("DIN", 3e-3, 0, 0.7)]
    rows += [row_of("DIN", 1e-3, 1, 0.1), row_of("HSTU", 1e-3, 0, 0.1)]
    rows += [row_of("DIN", 1e-3, 0, 0.1, task="rating")]
    rows += [row_of("DIN", 1e-3, 0, 0.1, log="latest-small")]
    assert chosen(pd.DataFrame(rows), "100K", "next item", "DIN") == 3e-3
    with pytest.raises(KeyError, match="BST"):
        chosen(pd.DataFrame(rows), "100K", "next item", "BST")


def test_runs_of_two_records_may_be_joined():
    one = pd.DataFrame([row_of("DIN", 1e-3, 0, 0.8), row_of("DIN", 3e-3, 0, 0.7)])
    other = pd.DataFrame([row_of("HSTU", 1e-3, 0, 0.2), row_of("HSTU", 3e-3, 0, 0.3)])
    best = quality.at_chosen_rates(pd.concat([one, other]))
    assert list(best.model) == ["DIN", "HSTU"]
    assert list(best.rate) == [3e-3, 1e-3]


def test_a_gap_is_of_the_seeds_that_both_have_and_of_both_doubts():
    random = np.random.default_rng(0)
    users, requests = random.uniform(0.6, 0.9, (5, 40)), random.integers(1, 9, 40)
    rows = [
        {"seed": seed, "users": list(u), "requests": list(requests)}
        | {"auc": np.average(u, weights=requests)}
        for seed, u in enumerate(users)
    ]
    a = pd.DataFrame(rows)
    better = [{**r, "users": [u + 0.01 for u in r["users"]]} for r in rows]
    b = pd.DataFrame([{**r, "auc": r["auc"] + 0.01} for r in better])[::-1][:3]
    a.loc[a.seed < 2, "auc"] = 0.0  # of seeds that b has not
    found = quality.gap(a, b)
    same = a[a.seed >= 2]
    seeds = difference(same.auc, b.auc)
    # To these users b is better by as much as to any others: that doubt is none.
    assert found.n == 3 and np.isclose(found.mean, -0.01)
    assert np.isclose(found.high - found.low, seeds.high - seeds.low)
    b["users"] = [list(np.add(u, random.normal(0, 0.1, 40))) for u in b.users]
    wider = quality.gap(a, b)
    assert wider.high - wider.low > 1.05 * (found.high - found.low)
    with pytest.raises(ValueError, match="at least 2"):
        quality.gap(a[a.seed < 3], b)


class Inline:
    """A pool that does the work at once."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, run, *arguments):
        from concurrent.futures import Future

        job = Future()
        job.set_result(run(*arguments))
        return job


@pytest.fixture
def trained(monkeypatch):
    """The keys that are trained, where the higher rate is the better one."""
    ran = []

    def run(model, log, task, title, rate, seed):
        ran.append((title, rate, seed))
        return row_of(title, rate, seed, 1 - rate, log, task)

    monkeypatch.setattr(quality, "_run", run)
    monkeypatch.setattr(quality, "task", lambda *_: None)
    monkeypatch.setattr(quality, "ProcessPoolExecutor", Inline)
    return ran


def test_all_rates_are_tried_with_seed_0_and_the_best_with_the_others(trained):
    rows = list(quality.runs(["100K", "next item", "DIN"]))
    assert len(rows) == len(trained) == len(quality.RATES) + len(quality.SEEDS) - 1
    assert {(rate, 0) for rate in quality.RATES} < {key[1:] for key in trained}
    others = {key[1:] for key in trained if key[2]}
    assert others == {(max(quality.RATES), seed) for seed in quality.SEEDS[1:]}


def test_what_is_there_is_not_trained_again(trained):
    rows = {_key(row): row for row in quality.runs(["100K", "next item", "DIN"])}
    trained.clear()
    assert not list(quality.runs(["100K", "next item", "DIN"], rows))
    key = ("100K", "next item", "DIN", max(quality.RATES), 3)
    part = {k: row for k, row in rows.items() if k != key}
    assert [_key(r) for r in quality.runs(["100K", "next item", "DIN"], part)] == [key]


def test_names_choose_logs_tasks_and_models(trained):
    list(quality.runs(["rating", "100K"]))
    assert {title for title, *_ in trained} == set(quality.MODELS)
    trained.clear()
    list(quality.runs(["next item", "100K"]))
    with_history = {name for name, m in quality.MODELS.items() if not m.past_rate}
    assert {title for title, *_ in trained} == with_history
    assert quality.asked(row_of("DIN", 1e-3, 0, 1.0), ["100K", "DIN"])
    assert not quality.asked(row_of("DIN", 1e-3, 0, 1.0), ["100K", "HSTU"])
    with pytest.raises(KeyError, match="BERT"):
        list(quality.runs(["BERT"]))


def test_a_variant_is_trained_at_the_rate_of_its_base(trained, monkeypatch):
    rows = [row_of("DIN", 1e-3, 0, 0.8), row_of("DIN", 3e-3, 0, 0.7)]
    rows += [row_of("HSTU", 1e-3, 0, 0.1)]
    recorded = record.Record(pd.DataFrame(rows), {})
    monkeypatch.setattr(record, "load", lambda name: recorded)
    models = dict.fromkeys(["DIN, wide", "HSTU, deep"], quality.MODELS["DIN"])

    def vary(*names):
        base = {name: name.partition(",")[0] for name in models}.get
        return list(quality.vary(models, base, "100K", "next item", names, {}))

    vary()
    of_din, of_hstu = ("DIN, wide", 3e-3), ("HSTU, deep", 1e-3)
    expected = [(*key, seed) for key in (of_din, of_hstu) for seed in (0, 1, 2)]
    assert sorted(trained) == sorted(expected)
    with pytest.raises(KeyError, match="BST"):
        vary("BST")


@pytest.mark.parametrize("name", ["naive DLRM", "HSTU"])
def test_a_model_reads_no_more_events_than_its_own(name, monkeypatch):
    model, asked = replace(quality.MODELS[name], events=7), []
    monkeypatch.setitem(
        quality.SCORING, "next item", lambda *_, max_events: asked.append(max_events)
    )
    monkeypatch.setattr(
        quality, "score_rows", lambda *_, batching: np.array([batching() or 0.5])
    )
    split = Split(*(np.array([0]) for _ in range(3)))
    log = SimpleNamespace(label=np.array([0.5]))
    task = SimpleNamespace(name="next item", log=log, histories=None, split=split)
    quality.score(model, None, task, split.test)
    assert asked == [7]
    assert model.recipe("next item", 1e-3).batching.keywords["max_events"] == 7


def test_the_past_rate_reads_earlier_events_alone():
    label = np.array([1, 1, 0, 1], np.float32)
    log = InteractionLog(
        user=np.zeros(4, np.int64),
        item=np.zeros(4, np.int64),
        timestamp=np.array([0, 1, 1, 5]),
        label=label,
        action=label.astype(np.int64),
        users=Features.fit([0]),
        items=Features.fit([0]),
        item_titles=None,
        actions=(0, 1),
        name="toy",
    )
    rate = (np.array([0, 1, 1, 2]) + 7.5) / (np.array([0, 1, 1, 3]) + 10)
    odds = np.log(rate / (1 - rate)) - np.log(3)
    found = past_rate(log, Histories.from_log(log), np.arange(4))
    assert np.allclose(found, odds, atol=1e-12)
