"""How fast machines are: the only place where hardware numbers are typed.

Numbers are the makers' peaks (dense, no sparsity). Real code stays below them: a
large product or a copy reaches 80 to 90 % on a good day. The CPU at hand is
measured, since its peak depends on cores, clock and memory that no sheet knows.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from recsys_edu import bench


@dataclass(frozen=True)
class Device:
    """A machine as the roofline sees it.

    flops      peak FLOP/s of matrix products, by the type of their operands
    bandwidth  peak bytes/s between memory and processor, reads and writes together
    source     where the numbers come from
    host       peak bytes/s from the CPU's memory to the card's, one way; None on a CPU
    """

    name: str
    flops: Mapping[torch.dtype, float]
    bandwidth: float
    source: str
    host: float | None = None

    def peak(self, dtype: torch.dtype = torch.float32) -> float:
        """Peak FLOP/s for `dtype`; KeyError, naming the known types, if unknown."""
        if dtype not in self.flops:
            known = ", ".join(str(d) for d in self.flops)
            raise KeyError(f"{self.name} has no peak for {dtype}; known: {known}")
        return self.flops[dtype]

    def ridge(self, dtype: torch.dtype = torch.float32) -> float:
        """FLOP per byte at which both roofs take equally long: peak / bandwidth."""
        return self.peak(dtype) / self.bandwidth


_HOPPER = {torch.bfloat16: 989e12, torch.float16: 989e12, torch.float32: 67e12}

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("H100 SXM", _HOPPER, 3.35e12, "NVIDIA H100 data sheet, SXM, HBM3", 64e9),
        Device("H200 SXM", _HOPPER, 4.8e12, "NVIDIA H200 data sheet, SXM, HBM3e", 64e9),
        Device(
            "A100 80GB",
            {torch.bfloat16: 312e12, torch.float16: 312e12, torch.float32: 19.5e12},
            2.0e12,
            "NVIDIA A100 data sheet, 80 GB SXM",
            32e9,
        ),
        Device(
            "L4",
            {torch.bfloat16: 121e12, torch.float16: 121e12, torch.float32: 30.3e12},
            300e9,
            "NVIDIA L4 data sheet, its sparse rates halved",
            32e9,
        ),
        Device(
            "T4",
            {torch.float16: 65e12, torch.float32: 8.1e12},
            320e9,
            "NVIDIA T4 data sheet; this card has no bfloat16",
            16e9,
        ),
    )
}
"""Machines by name. float32 means float32 operands throughout, without TF32.

``host`` is half of what the sheets give for PCIe, which counts both ways.
"""


_REPORTED = {
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H200": "H200 SXM",
    "NVIDIA A100-SXM4-80GB": "A100 80GB",
    "NVIDIA L4": "L4",
    "Tesla T4": "T4",
}


def data_sheet(reported: str) -> Device | None:
    """The card of :data:`DEVICES` that a driver calls ``reported``, None if not there.

    Cards of one name differ: an H100 for PCIe has another memory than one for SXM.
    """
    return DEVICES[_REPORTED[reported]] if reported in _REPORTED else None


def measure_this_machine(
    seconds: float = 1.0,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    *,
    timer: Callable[[], float] = time.perf_counter,
) -> Device:
    """The GPU at hand, or else the CPU: what products and a copy reach on it.

    Takes about `seconds`. A peak is that of a square product of operands of its type,
    the bandwidth that of a copy too large for the caches (bytes read plus written);
    each is the median of its rounds, so a lucky round does not set the roof.

    timer  as in `bench.compare`: what is held against the roof should use the same
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    n = 8192 if gpu else 1024
    operands = {dtype: torch.rand(n, n, device=device).to(dtype) for dtype in dtypes}
    source = torch.zeros(2**30 if gpu else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rounds = 9
    timings = bench.compare(
        {
            "copy": lambda: target.copy_(source),
            **{
                str(dtype): partial(torch.mm, a, a, out=torch.empty_like(a))
                for dtype, a in operands.items()
            },
        },
        rounds=rounds,
        # Finding the repeats of each function costs about two rounds.
        min_seconds=seconds / ((1 + len(operands)) * (rounds + 2)),
        timer=timer,
    )
    return Device(
        name=torch.cuda.get_device_name() if gpu else bench.environment()["cpu"],
        flops={dtype: 2 * n**3 / timings[str(dtype)].median for dtype in operands},
        bandwidth=2 * source.nbytes / timings["copy"].median,
        source=f"measured here: {n} x {n} product, {source.nbytes >> 20} MiB copy",
    )
