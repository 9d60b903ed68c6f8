"""Everything that the book measures on a GPU, in one run.

Every piece of :mod:`recsys_edu.experiments.gpu_work` on the card at hand. Takes eight
minutes at most. Each form of a piece is checked before it is timed: a sample of its
results may miss the truth in float64 by twice what plain PyTorch misses it by in the
same type. A row is one form of one piece:

====================  ==================================================================
key                   what
====================  ==================================================================
part, N, M, ...       which piece: see :data:`recsys_edu.experiments.gpu_work.PIECES`
form                  how it was computed; the first form of a piece is plain PyTorch
error, allowed        largest error in the sample, and its budget
seconds, low, high    a call, median and quartiles over ``rounds`` that the forms take
                      in turns, each the mean of ``repeats`` calls
times                 how many times that the first form takes, by round
flops, bytes          what the work takes: a kernel's by its formula, for all forms of
                      the piece; a request's as counted in plain PyTorch
of_measured           the time that takes at the roofs measured on this card, over
of_sheet              ``seconds``; and at those of its data sheet, if the book has it
peak_bytes            memory that a call allocates beyond what it is given
launches, kernels     what the CPU asks of the card in a call, and what the card runs;
                      not counted for calls that take longer than :data:`TRACED`
skipped               why there is no time: too little memory, no such kernel here, ...
failed                the error: an exception, or a result that is wrong
====================  ==================================================================

Inputs take turns too, as many as it takes to be larger than the last cache twice over:
a loop over one input would find it there. What is written may still stay in the cache,
so a small piece can run above the memory's roof: compare ``bytes`` with ``cache``.
"""

from __future__ import annotations

import itertools
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from recsys_edu.bench import Timing, compare, ratio
from recsys_edu.cost import (
    Cost,
    Device,
    data_sheet,
    measure_this_machine,
    roofline_seconds,
)
from recsys_edu.experiments import gpu_work
from recsys_edu.experiments.gpu_work import Form, Piece, Plan

LAUNCH = re.compile(r"cu(da)?(Launch|GraphLaunch|Memcpy|Memset)")
TRACED = 0.1  # seconds; the trace of a longer call would take longer than all the rest
CANNOT = re.compile("cannot run|No available kernel|No viable backend")
"""How this package's kernels, and PyTorch's, say that they cannot take such tensors."""


@dataclass(frozen=True)
class Card:
    """The machine under test, and the roofs that times are held against."""

    measured: Device
    sheet: Device | None
    cache: int  # bytes of the last level, 0 on a CPU

    @classmethod
    def at_hand(cls, plan: Plan) -> Card:
        """Measures it."""
        if not torch.cuda.is_available():
            return cls(measure_this_machine(plan.roof_seconds), None, 0)
        types = dict.fromkeys((torch.float32, torch.float16, gpu_work.low_type()))
        measured = measure_this_machine(plan.roof_seconds, tuple(types))
        properties = torch.cuda.get_device_properties(gpu_work.device())
        return cls(measured, data_sheet(measured.name), properties.L2_cache_size)

    def roofs(self) -> Iterator[dict]:
        """A row for each: its rate, in bytes or FLOPs a second."""
        rates = {"copy": (self.measured.bandwidth, self.sheet and self.sheet.bandwidth)}
        for dtype, peak in self.measured.flops.items():
            sheet = self.sheet and self.sheet.flops.get(dtype)
            rates[f"product, {gpu_work.short(dtype)}"] = peak, sheet
        for form, (rate, sheet) in rates.items():
            row = {"part": "roof", "form": form, "rate": _digits(rate)}
            yield row | ({"of_sheet": _digits(rate / sheet)} if sheet else {})
        if gpu_work.low_type() == torch.float16:
            reason = "this card has no bfloat16: float16 takes its place"
            yield {"part": "roof", "form": "product, bfloat16", "skipped": reason}

    def fractions(self, cost: Cost, dtype: torch.dtype, seconds: float) -> dict:
        """How much of ``seconds`` the work would take at the roofs."""
        roofs = {"of_measured": self.measured, "of_sheet": self.sheet}
        return {
            name: _digits(roofline_seconds(cost, roof, dtype) / seconds)
            for name, roof in roofs.items()
            if roof is not None and dtype in roof.flops
        }


@torch.no_grad()
def runs(names: Sequence[str] = (), *, plan: Plan | None = None) -> Iterator[dict]:
    """The rows, a piece at a time.

    Args:
        plan: what to measure; None for all of it, which needs a GPU.

    Raises:
        ValueError: forms are named: they are timed in turns, so all or none.
        RuntimeError: there is no GPU, and no plan that can do without.
    """
    if names:
        raise ValueError("gpu is recorded for all forms at once: name none")
    if plan is None and not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no CUDA GPU here: there is nothing to record")
    plan, start = plan or Plan(), time.monotonic()
    card = Card.at_hand(plan)
    yield from card.roofs()
    for where, make in gpu_work.pieces(plan):
        if time.monotonic() - start > plan.seconds:
            yield where | {"skipped": f"{plan.seconds:.0f} s were over"}
            continue
        try:
            yield from measure(where, make(), card, plan)
        except Exception as error:  # a row, and not the end of the record
            yield where | why_not(error)
        # Compiled code is kept by line of source, and only so often.
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(where: dict, piece: Piece, card: Card, plan: Plan) -> Iterator[dict]:
    """Checks every form of a piece, then times those that passed."""
    rows = {name: checked(form, piece.inputs[0]) for name, form in piece.forms.items()}
    turns = {
        name: turning(piece.forms[name].run, piece.inputs)
        for name, row in rows.items()
        if not row.keys() & {"skipped", "failed"}
    }
    timings = compare(turns, rounds=plan.rounds, min_seconds=plan.min_seconds)
    first = timings.get(next(iter(rows)))
    for name, timing in timings.items():
        cost = piece.forms[name].cost
        rows[name] |= {
            **_timed(timing, first),
            "flops": cost.flops,
            "bytes": cost.bytes,
            **card.fractions(cost, piece.dtype, timing.median),
            **peak_bytes(turns[name]),
            **(launches(turns[name]) if timing.median < TRACED else {}),
        }
    for name, row in rows.items():
        yield where | {"form": name, "cache": card.cache} | row


def checked(form: Form, inputs: tuple) -> dict:
    """The error of a form and what is allowed; or why it was skipped, or failed."""
    if form.obstacle:
        return {"skipped": form.obstacle}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of slow paths: the times will tell
            error, allowed = form.truth.miss(form.run(*inputs))
    except Exception as error:
        return why_not(error)
    row = {"error": _digits(error), "allowed": _digits(allowed)}
    if not error <= allowed:  # NaN is not
        row["failed"] = f"off by {error:.1e}, allowed {allowed:.1e}"
    return row


def why_not(error: Exception) -> dict:
    """Skipped, where this machine cannot do it; failed, where it should."""
    text = str(error).strip() or "no message"
    line = f"{type(error).__name__}: {text.splitlines()[0][:200]}"
    cannot = isinstance(error, torch.OutOfMemoryError) or CANNOT.search(text)
    return {"skipped" if cannot else "failed": line}


def turning(run: Callable, inputs: Sequence[tuple]) -> Callable[[], object]:
    """``run`` on the inputs in turn."""
    turn = itertools.cycle(inputs)
    return lambda: run(*next(turn))


def peak_bytes(run: Callable[[], object]) -> dict:
    """What a call allocates at most beyond what is there; only a GPU's memory tells."""
    if not torch.cuda.is_available():
        return {}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return {"peak_bytes": torch.cuda.max_memory_allocated() - before}


def launches(run: Callable[[], object]) -> dict:
    """What the CPU asks of the card in a call, copies included, and what the card runs.

    A CUDA graph is one launch of many kernels.
    """
    gpu = [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *gpu]) as watched:
        run()
        if gpu:
            torch.cuda.synchronize()
    rows = watched.key_averages()
    on_card = [row for row in rows if row.device_type == DeviceType.CUDA]
    return {
        "launches": sum(row.count for row in rows if LAUNCH.match(row.key)),
        "kernels": sum(row.count for row in on_card),
    }


def _timed(timing: Timing, first: Timing | None) -> dict:
    row = {
        "seconds": _digits(timing.median),
        "low": _digits(timing.low),
        "high": _digits(timing.high),
        "rounds": len(timing.samples),
        "repeats": timing.repeats,
    }
    if first is not None:
        row["times"] = _digits(ratio(first, timing).median)
    return row


def _digits(number: float) -> float:
    return float(f"{number:.4g}")
