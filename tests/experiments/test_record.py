"""Records of long runs: written whole, read back, true to the code they are of."""

import json

import pytest
import torch

from recsys_edu.bench import environment
from recsys_edu.experiments import quality, record


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty place for records."""
    monkeypatch.setattr(record, "FOLDER", tmp_path / "recorded")
    return tmp_path / "recorded"


def test_a_record_comes_back_with_where_it_is_from(folder):
    runs = [
        {"model": "DIN", "date": "2026-01-02", "commit": "abc"},
        {"model": "concat", "date": "2026-01-02", "commit": "def"},
    ]
    record.save("toy", runs)
    loaded = record.load("toy")
    assert loaded.runs.to_dict("records") == runs
    assert loaded.provenance == environment()
    for part in ("2 runs", "on 2026-01-02 with", "commit abc, def", torch.__version__):
        assert part in str(loaded)


def test_a_record_has_a_run_a_line_and_leaves_no_other_file(folder):
    record.save("toy", [{"seed": seed} for seed in range(3)])
    [path] = folder.iterdir()
    lines = [line for line in path.read_text().splitlines() if '"seed"' in line]
    assert [json.loads(line.rstrip(","))["seed"] for line in lines] == [0, 1, 2]


def test_a_missing_record_names_the_command_that_makes_it(folder):
    with pytest.raises(
        FileNotFoundError, match=r"python -m recsys_edu\.experiments toy"
    ):
        record.load("toy")


def record_quality(monkeypatch, *models):
    monkeypatch.setattr("sys.argv", ["record", "quality", *models])
    record.main()


def test_the_recorder_keeps_what_was_done_before_a_failure(folder, monkeypatch):
    def runs(models):
        yield {"seed": 0}
        raise RuntimeError("killed")

    monkeypatch.setattr(quality, "runs", runs)
    with pytest.raises(RuntimeError, match="killed"):
        record_quality(monkeypatch)
    [run] = record.load("quality").runs.to_dict("records")
    assert run == {"seed": 0} | record.origin()


def test_naming_models_records_them_alone(folder, monkeypatch):
    record.save("quality", [{"model": name, "auc": 0.5} for name in ("DIN", "concat")])
    monkeypatch.setattr(
        quality, "runs", lambda models: ({"model": m, "auc": 0.7} for m in models)
    )
    record_quality(monkeypatch, "DIN")
    runs = record.load("quality").runs
    assert dict(zip(runs.model, runs.auc, strict=True)) == {"concat": 0.5, "DIN": 0.7}


def test_runs_of_two_environments_are_not_mixed(folder, monkeypatch):
    record.save("quality", [{"model": "DIN"}, {"model": "concat"}])
    monkeypatch.setattr(record, "environment", lambda: {"cpu": "another"})
    with pytest.raises(ValueError, match="another environment"):
        record_quality(monkeypatch, "DIN")
    assert len(record.load("quality").runs) == 2


def test_a_model_that_there_is_not_is_named(folder, monkeypatch):
    with pytest.raises(KeyError, match=r"no model \['BERT'\]; there are"):
        next(quality.runs(["BERT"]))


def test_a_record_made_on_a_gpu_names_it(folder, monkeypatch):
    monkeypatch.setattr(record, "environment", lambda: environment() | {"gpu": "T4"})
    record.save("toy", [{"date": "2026-01-02", "commit": "abc"}])
    assert "on T4 and" in str(record.load("toy"))
