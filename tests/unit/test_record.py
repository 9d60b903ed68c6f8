"""Records of long runs: written whole, read back, true to the code they are of."""

import json

import pytest

from figures import quality, record


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty place for records."""
    monkeypatch.setattr(record, "FOLDER", tmp_path / "recorded")
    return tmp_path / "recorded"


def test_a_record_comes_back_with_where_it_is_from(folder):
    runs = [{"model": "DIN", "auc": 0.75}, {"model": "concat", "auc": 0.5}]
    record.save("toy", runs)
    loaded = record.load("toy")
    assert loaded.runs.to_dict("records") == runs
    assert {"cpu", "torch", "date", "commit", "torch threads"} <= set(loaded.provenance)
    assert "2 runs" in str(loaded) and loaded.provenance["date"] in str(loaded)


def test_a_record_has_a_run_a_line_and_leaves_no_other_file(folder):
    record.save("toy", [{"seed": seed} for seed in range(3)])
    [path] = folder.iterdir()
    lines = [line for line in path.read_text().splitlines() if '"seed"' in line]
    assert [json.loads(line.rstrip(","))["seed"] for line in lines] == [0, 1, 2]


def test_a_missing_record_names_the_command_that_makes_it(folder):
    with pytest.raises(FileNotFoundError, match=r"python -m figures\.record toy"):
        record.load("toy")


def test_the_recorder_keeps_what_was_done_before_a_failure(folder, monkeypatch):
    def runs():
        yield {"seed": 0}
        raise RuntimeError("killed")

    monkeypatch.setattr(quality, "runs", runs)
    monkeypatch.setattr("sys.argv", ["record", "quality"])
    with pytest.raises(RuntimeError, match="killed"):
        record.main()
    assert record.load("quality").runs.to_dict("records") == [{"seed": 0}]


def test_the_recorded_quality_is_of_the_models_and_seeds_in_the_code():
    runs = record.load("quality").runs
    expected = {(name, seed) for name in quality.MODELS for seed in quality.SEEDS}
    assert set(zip(runs.model, runs.seed, strict=True)) == expected
    assert len(runs) == len(expected)
