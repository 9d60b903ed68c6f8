"""The one protocol: rows written as they come, taken up after a kill, never mixed."""

import json
import re
from types import SimpleNamespace

import pytest

from recsys_edu.bench import environment
from recsys_edu.experiments import record, returns, runner

MODELS, SEEDS = ("DIN", "concat"), (0, 1)
EVERY = {(model, seed) for model in MODELS for seed in SEEDS}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty place for records, made at a clean commit."""
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    at_commit(monkeypatch, "abc")
    return tmp_path


def at_commit(monkeypatch, commit):
    origin = {"date": "2026-01-02", "commit": commit}
    monkeypatch.setattr(record, "origin", lambda: origin)


class Killed(BaseException):
    """As a keyboard's: nothing catches it."""


def experiment(auc=0.7, kill_after=None):
    """A module with two models and two seeds; ``ran`` lists what it ran."""
    ran = []

    def runs(names=(), done=frozenset()):
        for model in names or MODELS:
            for seed in SEEDS:
                if (model, seed) in done:
                    continue
                if len(ran) == kill_after:
                    raise Killed
                ran.append((model, seed))
                yield {"model": model, "seed": seed, "auc": auc}

    key = ("model", "seed")
    return SimpleNamespace(__name__="package.toy", KEY=key, runs=runs, ran=ran)


def recorded():
    return record.load("toy").runs


def test_rows_are_recorded_with_where_they_are_from(folder):
    rows = runner.run(experiment())
    assert rows == recorded().to_dict("records")
    assert rows[0] == {"model": "DIN", "seed": 0, "auc": 0.7} | record.origin()
    assert record.load("toy").provenance == environment()
    assert [path.name for path in folder.iterdir()] == ["toy.json"]


def test_a_kill_loses_one_row_and_leaves_the_record_as_it_was(folder, monkeypatch):
    runner.run(experiment(auc=0.5))
    at_commit(monkeypatch, "def")
    with pytest.raises(Killed):
        runner.run(experiment(kill_after=3))
    assert len(recorded()) == 4 and (recorded().auc == 0.5).all()

    again = experiment()
    runner.run(again)
    assert again.ran == [("concat", 1)]
    assert len(recorded()) == 4 and (recorded().auc == 0.7).all()
    assert [path.name for path in folder.iterdir()] == ["toy.json"]


def test_what_is_recorded_at_this_commit_is_not_run_again_unless_asked():
    runner.run(experiment(auc=0.5))
    idle, busy = experiment(), experiment()
    runner.run(idle)
    assert idle.ran == [] and (recorded().auc == 0.5).all()
    runner.run(busy, again=True)
    assert {*busy.ran} == EVERY and (recorded().auc == 0.7).all()


def test_names_are_of_models_wherever_that_column_stands():
    toy = experiment(auc=0.5)
    toy.KEY = ("seed", "model")
    first = toy.runs
    toy.runs = lambda names, done: first(names, {key[::-1] for key in done})
    runner.run(toy)
    toy.ran.clear()
    runner.run(toy, ["concat"], again=True)
    assert set(toy.ran) == {("concat", seed) for seed in SEEDS}
    assert len(recorded()) == 4


def test_running_again_goes_on_after_a_kill_too():
    runner.run(experiment(auc=0.5))
    with pytest.raises(Killed):
        runner.run(experiment(kill_after=3), again=True)
    rest = experiment()
    runner.run(rest, again=True)
    assert rest.ran == [("concat", 1)] and (recorded().auc == 0.7).all()


@pytest.mark.parametrize("commit", ["def", "abc-dirty"])
def test_rows_of_other_code_are_run_again(monkeypatch, commit):
    runner.run(experiment(auc=0.5))
    at_commit(monkeypatch, commit)
    with pytest.raises(Killed):
        runner.run(experiment(auc=0.5, kill_after=2))
    at_commit(monkeypatch, "abc-dirty")
    rerun = experiment()
    runner.run(rerun)
    assert {*rerun.ran} == EVERY and (recorded().auc == 0.7).all()


def test_rows_of_another_machine_are_run_again(monkeypatch):
    runner.run(experiment(auc=0.5))
    monkeypatch.setattr(runner, "environment", lambda: {"cpu": "another"})
    rerun = experiment()
    runner.run(rerun)
    assert {*rerun.ran} == EVERY
    assert record.load("toy").provenance == {"cpu": "another"}


def test_naming_models_records_them_alone(monkeypatch):
    runner.run(experiment(auc=0.5))
    at_commit(monkeypatch, "def")
    named = experiment()
    rows = runner.run(named, ["concat"])
    assert named.ran == [("concat", 0), ("concat", 1)] and len(rows) == 4
    auc = recorded().groupby("model").auc.first()
    assert auc.to_dict() == {"DIN": 0.5, "concat": 0.7}
    assert [*recorded().commit] == ["abc", "abc", "def", "def"]


def test_a_named_run_leaves_what_another_left_unfinished():
    runner.run(experiment(auc=0.5))
    with pytest.raises(Killed):
        runner.run(experiment(kill_after=1), again=True)
    runner.run(experiment(auc=0.9), ["concat"], again=True)
    assert [*recorded().auc] == [0.5, 0.5, 0.9, 0.9]
    rest = experiment()
    runner.run(rest, ["DIN"], again=True)
    assert rest.ran == [("DIN", 1)]
    assert [*recorded().auc] == [0.9, 0.9, 0.7, 0.7]


def test_runs_of_two_environments_are_not_mixed(monkeypatch):
    runner.run(experiment())
    monkeypatch.setattr(runner, "environment", lambda: {"cpu": "another"})
    named = experiment()
    with pytest.raises(ValueError, match="another environment"):
        runner.run(named, ["DIN"])
    assert named.ran == [] and len(recorded()) == 4


def test_a_piece_that_is_measured_again_replaces_its_rows():
    """Of a piece cut off in the middle, what was there comes a second time."""
    toy = experiment()
    with pytest.raises(Killed):
        runner.run(experiment(auc=0.5, kill_after=1))
    toy.runs = lambda names, done: experiment().runs(names)
    rows = runner.run(toy)
    assert [(row["model"], row["seed"]) for row in rows] == sorted(EVERY)
    assert {row["auc"] for row in rows} == {0.7}


def side_by_side(*seconds, kill=False):
    """An experiment without a key."""

    def runs(names):
        for number in seconds:
            yield {"form": "any", "seconds": number}
        if kill:
            raise Killed

    return SimpleNamespace(__name__="package.toy", runs=runs)


def test_what_is_measured_side_by_side_is_recorded_whole_or_not_at_all():
    with pytest.raises(Killed):
        runner.run(side_by_side(1.0, 2.0, kill=True))
    runner.run(side_by_side(3.0, 4.0))
    assert [*recorded().seconds] == [3.0, 4.0]
    runner.run(side_by_side(5.0))
    assert [*recorded().seconds] == [3.0, 4.0]
    runner.run(side_by_side(5.0), again=True)
    assert [*recorded().seconds] == [5.0]


# --- the command line -----------------------------------------------------------------


def test_the_command_prints_a_table_and_ends_with_a_line_of_json(monkeypatch, capsys):
    toy = experiment()
    monkeypatch.setattr(returns, "runs", toy.runs)
    runner.main(["returns", "DIN"])
    out, err = capsys.readouterr()
    head, row = re.findall(r"^.*\b(?:model|DIN)\b.*$", out, re.MULTILINE)[:2]
    assert head.split() == ["model", "auc", "seeds"]
    assert row.split() == ["DIN", "0.7", "2"]
    line = json.loads(out.splitlines()[-1])
    assert line["experiment"] == "returns" and line["provenance"] == environment()
    assert [row["seed"] for row in line["runs"]] == [0, 1]
    assert "2 rows" in err  # the bar, in a log


def test_alone_it_lists_every_experiment_and_its_time(capsys):
    runner.main([])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert names == sorted(runner.overview())
    known = {"quality", "variants", "returns", "latency", "gpu"}
    assert {*names} >= known | {"scoring", "catalogue", "peers"}
    assert all(re.search(r"\S  +\S.*\. \(.*(hour|minute).*\)$", x) for x in lines)
    assert "Ranking quality of every encoder" in lines[names.index("quality")]


def test_an_experiment_that_there_is_not_is_named(capsys):
    with pytest.raises(SystemExit):
        runner.main(["qualty"])
    assert "no experiment 'qualty': there are catalogue" in capsys.readouterr().err


def test_a_model_that_there_is_not_is_named():
    with pytest.raises(KeyError, match=r"no model \['BERT'\]; there are"):
        runner.run(returns, ["BERT"])


def test_a_table_leaves_out_what_all_rows_share_and_what_a_row_has_not():
    rows = [
        {"form": "a", "seconds": 0.123456},
        {"form": "b", "skipped": "no card"},
        {"form": "c", "seconds": 2.0},
    ]
    text = runner.table([row | record.origin() for row in rows], key=())
    timed, skipped = (
        [line.split() for line in x.split("\n")] for x in text.split("\n\n")
    )
    assert timed == [["form", "seconds"], ["a", "0.1235"], ["c", "2"]]
    assert skipped == [["form", "skipped"], ["b", "no", "card"]]
