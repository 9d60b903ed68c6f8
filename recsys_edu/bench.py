"""Timing done right: warm up, take turns, wait for the device, show the spread.

Work on a GPU is only queued when a call returns; the clock is read after
`torch.cuda.synchronize()`. The functions take turns, so that a machine that slows
down for a while slows all of them, and a ratio is taken within each round.
"""

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

import torch

from recsys_edu.units import humanize, scale_of, three_digits


@dataclass(frozen=True)
class _Rounds:
    """One number per round, summarised by its median and quartiles."""

    samples: tuple[float, ...]

    @cached_property
    def _quartiles(self) -> tuple[float, float, float]:
        if len(self.samples) == 1:
            return (self.samples[0],) * 3
        low, median, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, median, high

    @property
    def low(self) -> float:
        """First quartile."""
        return self._quartiles[0]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return self._quartiles[1]

    @property
    def high(self) -> float:
        """Third quartile."""
        return self._quartiles[2]

    def _spread(self, factor: float) -> str:
        low, high = (three_digits(x / factor) for x in (self.low, self.high))
        return f"(IQR {low}-{high}, {len(self.samples)} rounds)"


@dataclass(frozen=True)
class Timing(_Rounds):
    """Seconds per call. Prints as "1.23 ms (IQR 1.20-1.31, 15 rounds)".

    samples  seconds per call, one number per round: the mean of `repeats` calls
    repeats  calls per round, chosen so that a round is long enough to measure
    """

    repeats: int

    def __truediv__(self, ticks: int) -> "Timing":
        """The time of one tick, where a call did `ticks` of them."""
        return Timing(tuple(seconds / ticks for seconds in self.samples), self.repeats)

    def __str__(self) -> str:
        return f"{humanize(self.median, 's')} {self._spread(scale_of(self.median)[0])}"


@dataclass(frozen=True)
class Ratio(_Rounds):
    """A quotient of two timings, per round. Prints as "12.3x (IQR 12.0-12.9, ...)"."""

    def __str__(self) -> str:
        return f"{three_digits(self.median)}x {self._spread(1.0)}"


def compare(
    fns: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    min_seconds: float = 1e-3,
    timer: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time functions against each other: name -> `Timing` over the same rounds.

    Every function first runs until a sample takes `min_seconds`, which warms it up
    and sets its repeats. Then each round times every function once, in an order
    that rotates, so that none always runs after the same neighbour.

    timer  reads seconds; tests put a fake one here
    Raises ValueError if there is no round to run.

    Example:
        >>> a = torch.rand(64, 64)
        >>> times = compare({"one": lambda: a @ a, "two": lambda: a @ a @ a}, rounds=5)
        >>> ratio(times["two"], times["one"]).median > 1
        True
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    repeats = {name: _calibrate(fn, min_seconds, timer) for name, fn in fns.items()}
    samples: dict[str, list[float]] = {name: [] for name in fns}
    names = list(fns)
    for round_index in range(rounds):
        turn = round_index % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            seconds = _elapsed(fns[name], repeats[name], timer)
            samples[name].append(seconds / repeats[name])
    return {name: Timing(tuple(samples[name]), repeats[name]) for name in fns}


def ratio(a: Timing, b: Timing) -> Ratio:
    """How many times longer `a` takes than `b`, round by round.

    Both must come from one `compare`: only then did their rounds share the state of
    the machine. Raises ValueError if the numbers of rounds differ.
    """
    pairs = zip(a.samples, b.samples, strict=True)
    return Ratio(tuple(x / y for x, y in pairs))


def _calibrate(
    fn: Callable[[], object], min_seconds: float, timer: Callable[[], float]
) -> int:
    """The least power of two of calls that takes `min_seconds`, after a warm-up."""
    fn()  # first calls allocate, compile and fill caches
    repeats = 1
    while _elapsed(fn, repeats, timer) < min_seconds:
        repeats *= 2
    return repeats


def _elapsed(
    fn: Callable[[], object], repeats: int, timer: Callable[[], float]
) -> float:
    _synchronize()
    start = timer()
    for _ in range(repeats):
        fn()
    _synchronize()
    return timer() - start


def _synchronize() -> None:
    """Wait for queued GPU work, if this process has used a GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def environment() -> dict[str, str | int]:
    """What a timing depends on, without anything that names the machine or its user.

    With a GPU, also its driver, and the CUDA and Triton that PyTorch uses.
    """
    gpu = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if gpu else "none",
        **(_gpu_software() if gpu else {}),
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "torch threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.machine()}",
    }


def environment_card() -> str:
    """`environment()` as a Markdown table."""
    rows = [f"| {name} | {value} |" for name, value in environment().items()]
    return "\n".join(["| | this machine |", "| --- | --- |", *rows])


def _gpu_software() -> dict[str, str]:
    return {
        "driver": _driver(),
        "cuda": torch.version.cuda or "none",
        "triton": _version("triton"),
    }


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:  # PyTorch does not tell
        return "unknown"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.split()[0] if done.returncode == 0 else "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linuxes
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # a container may use fewer than exist
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
