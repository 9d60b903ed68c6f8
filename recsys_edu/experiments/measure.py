"""What experiments share: how a timing becomes a row, parts, and peak memory."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recsys_edu.bench import Timing, ratio


def digits(number: float) -> float:
    """Four of them that count: what a record keeps of a measurement."""
    return float(f"{number:.4g}")


def timed(timing: Timing, unit: Timing) -> dict[str, float]:
    """``seconds`` and ``times`` those of ``unit``, round by round, with quartiles."""
    times = ratio(timing, unit)
    numbers = {
        "seconds": timing.median,
        "low": timing.low,
        "high": timing.high,
        "times": times.median,
        "times_low": times.low,
        "times_high": times.high,
    }
    return {name: digits(number) for name, number in numbers.items()}


@torch.no_grad()
def in_parts(
    parts: Mapping[str, Callable[[Any], Iterator[dict]]],
    names: Sequence[str],
    done: frozenset[tuple],
    plan: Any,
) -> Iterator[dict]:
    """The rows of each named part (all, if none is) that is not done.

    Rows of a part come when all of it is measured, so that a kill leaves all or none.

    Args:
        parts: name -> what yields its rows, given the plan.
        done: keys that begin with the name of a part.

    Raises:
        KeyError: a name that is not among the parts.
    """
    if unknown := set(names) - set(parts):
        raise KeyError(f"no part {sorted(unknown)}; there are {list(parts)}")
    for name in names or parts:
        if name not in {key[0] for key in done}:
            for row in list(parts[name](plan)):
                yield {"part": name, **row}


def added_by(make: Callable[..., Callable[[], object]], *size: int) -> dict:
    """``megabytes`` that the call ``make(*size)()`` adds to a process of its own.

    Linux can forget a process's peak so far, which is what the difference is taken to;
    elsewhere the row says that it was ``skipped``.
    """
    if not Path("/proc/self/clear_refs").exists():
        return {"skipped": "only Linux can measure a peak from inside"}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return {"megabytes": digits(pool.apply(_added, (make, *size)))}


def _added(make: Callable[..., Callable[[], object]], *size: int) -> float:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    run = make(*size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held now
    before = _peak_megabytes()
    run()
    return _peak_megabytes() - before


def _peak_megabytes() -> float:
    [line] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) / 1e3
