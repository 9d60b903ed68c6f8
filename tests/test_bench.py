"""Timing logic on a fake clock: no test here depends on how fast a machine is."""

import getpass
import platform

import pytest
import torch

from recsys_edu import bench
from recsys_edu.bench import Timing, compare, environment, environment_card, ratio
from recsys_edu.units import humanize


class FakeTime:
    """A clock that only moves when a fake function runs; `seconds` a call."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def function(self, name, seconds):
        durations = iter(seconds) if not isinstance(seconds, float) else None

        def run():
            self.calls.append(name)
            self.now += seconds if durations is None else next(durations)

        return run


def test_repeats_grow_until_a_sample_is_long_enough():
    time = FakeTime()
    timings = compare(
        {"short": time.function("short", 0.1875), "long": time.function("long", 4.0)},
        rounds=3,
        min_seconds=1.0,
        timer=time,
    )
    assert timings["short"] == Timing((0.1875,) * 3, repeats=8)
    assert timings["long"] == Timing((4.0,) * 3, repeats=1)


def test_the_first_call_is_a_warm_up():
    time = FakeTime()
    slow_start = [100.0] + [1.0] * 10
    timings = compare(
        {"f": time.function("f", slow_start)}, rounds=3, min_seconds=1.0, timer=time
    )
    assert timings["f"].samples == (1.0, 1.0, 1.0)


def test_functions_take_turns_in_an_order_that_rotates():
    time = FakeTime()
    fns = {name: time.function(name, 1.0) for name in "abc"}
    compare(fns, rounds=4, min_seconds=1.0, timer=time)
    warm_up, rounds = time.calls[:6], time.calls[6:]
    assert warm_up == list("aabbcc")
    assert "".join(rounds) == "abc" + "bca" + "cab" + "abc"


def test_the_device_is_waited_for_on_both_sides_of_a_sample(monkeypatch):
    time = FakeTime()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: time.calls.append("wait"))
    compare({"f": time.function("f", 1.0)}, rounds=1, min_seconds=1.0, timer=time)
    warm_up, calibration, sample = ["f"], ["wait", "f", "wait"], ["wait", "f", "wait"]
    assert time.calls == warm_up + calibration + sample


def test_no_rounds_is_an_error():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        compare({"f": lambda: None}, rounds=0)


def test_nothing_to_compare_is_nothing():
    assert compare({}) == {}


def test_a_timing_is_its_median_and_quartiles():
    timing = Timing((5e-3, 1e-3, 2e-3, 4e-3, 3e-3), repeats=1)
    assert (timing.low, timing.median, timing.high) == (2e-3, 3e-3, 4e-3)
    assert str(timing) == "3.00 ms (IQR 2.00-4.00, 5 rounds)"


def test_low_and_high_are_written_in_the_unit_of_the_median():
    timing = Timing((0.9e-3, 1.2e-3, 1.3e-3), repeats=1)
    assert str(timing) == "1.20 ms (IQR 1.05-1.25, 3 rounds)"


def test_one_round_has_no_spread():
    timing = Timing((2.0,), repeats=1)
    assert (timing.low, timing.median, timing.high) == (2.0, 2.0, 2.0)


def test_a_ratio_is_taken_within_each_round():
    # The machine is 10x slower in the second round; the ratio does not see it.
    a, b = Timing((6.0, 60.0, 9.0), 1), Timing((2.0, 20.0, 3.0), 1)
    assert ratio(a, b).samples == (3.0, 3.0, 3.0)
    assert str(ratio(a, b)) == "3.00x (IQR 3.00-3.00, 3 rounds)"


def test_a_ratio_needs_rounds_in_common():
    with pytest.raises(ValueError):
        ratio(Timing((1.0, 2.0), 1), Timing((1.0,), 1))


def test_the_environment_tells_the_machine_and_not_its_owner():
    env = environment()
    assert env["torch"] == torch.__version__
    assert env["cores"] >= 1
    told = " ".join(str(value) for value in env.values())
    assert platform.node() not in told
    assert getpass.getuser() not in told.split()
    assert "/" not in told


def test_the_environment_card_is_a_table_of_it(monkeypatch):
    monkeypatch.setattr(bench, "environment", lambda: {"cpu": "abacus", "cores": 2})
    assert environment_card() == (
        "| | this machine |\n| --- | --- |\n| cpu | abacus |\n| cores | 2 |"
    )


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "FLOP", "0 FLOP"),
        (64, "B", "64 B"),
        (999, "B", "999 B"),
        (1000, "B", "1.00 kB"),
        (12_345, "FLOP", "12.3 kFLOP"),
        (999_600, "FLOP", "1.00 MFLOP"),
        (3.35e12, "B/s", "3.35 TB/s"),
        (5e16, "FLOP", "50000 TFLOP"),
        (1.234e-3, "s", "1.23 ms"),
        (8.1e-7, "s", "810 ns"),
        (2e-15, "s", "0.00200 ps"),
        (-12_345, "B", "-12.3 kB"),
        (2.5, "s", "2.50 s"),
    ],
)
def test_humanize(value, unit, text):
    assert humanize(value, unit) == text


def test_a_timing_of_many_ticks_divides_into_one_tick():
    assert (Timing((2.0, 4.0, 6.0), repeats=3) / 4).samples == (0.5, 1.0, 1.5)


def test_a_gpu_comes_with_its_driver_and_compilers(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "abacus")
    monkeypatch.setattr(bench, "_version", {"triton": "1.2"}.get)
    monkeypatch.setenv("PATH", str(tmp_path))
    env = environment()
    assert (env["gpu"], env["driver"], env["triton"]) == ("abacus", "unknown", "1.2")
    assert env["cuda"] == (torch.version.cuda or "none")
    tool = tmp_path / "nvidia-smi"
    for script, driver in (("echo 570.1", "570.1"), ("echo no; exit 9", "unknown")):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        assert environment()["driver"] == driver


def test_a_package_that_is_not_there_has_no_version():
    assert bench._version("no-such-package") == "none"
    assert bench._version("torch") == torch.__version__
