"""How fast machines are: the only place where hardware numbers are typed.

Numbers are the makers' peaks (dense, no sparsity). Real code stays below them: a
large product or a copy reaches 80 to 90 % on a good day. The CPU at hand is
measured, since its peak depends on cores, clock and memory that no sheet knows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from recsys_edu import bench


@dataclass(frozen=True)
class Device:
    """A machine as the roofline sees it.

    flops      peak FLOP/s of matrix products, by the type of their operands
    bandwidth  peak bytes/s between memory and processor, reads and writes together
    source     where the numbers come from
    """

    name: str
    flops: Mapping[torch.dtype, float]
    bandwidth: float
    source: str

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
        Device("H100 SXM", _HOPPER, 3.35e12, "NVIDIA H100 data sheet, SXM, HBM3"),
        Device("H200 SXM", _HOPPER, 4.8e12, "NVIDIA H200 data sheet, SXM, HBM3e"),
        Device(
            "A100 80GB",
            {torch.bfloat16: 312e12, torch.float16: 312e12, torch.float32: 19.5e12},
            2.0e12,
            "NVIDIA A100 data sheet, 80 GB SXM",
        ),
        Device(
            "L4",
            {torch.bfloat16: 121e12, torch.float16: 121e12, torch.float32: 30.3e12},
            300e9,
            "NVIDIA L4 data sheet, its sparse rates halved",
        ),
        Device(
            "T4",
            {torch.float16: 65e12, torch.float32: 8.1e12},
            320e9,
            "NVIDIA T4 data sheet; this card has no bfloat16",
        ),
    )
}
"""Machines by name. float32 means float32 operands throughout, without TF32."""


def measure_this_machine(seconds: float = 1.0) -> Device:
    """The GPU at hand, or else the CPU: what a product and a copy reach on it.

    Takes about `seconds`. The peak is that of a square float32 product, the
    bandwidth that of a copy too large for the caches (bytes read plus written);
    each is the median of its rounds, so a lucky round does not set the roof.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    n = 8192 if gpu else 1024
    a = torch.rand(n, n, device=device)
    out = torch.empty_like(a)
    source = torch.zeros(2**30 if gpu else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rounds = 9
    timings = bench.compare(
        {
            "product": lambda: torch.mm(a, a, out=out),
            "copy": lambda: target.copy_(source),
        },
        rounds=rounds,
        # Two functions in each round; finding their repeats costs about two rounds.
        min_seconds=seconds / (2 * (rounds + 2)),
    )
    return Device(
        name=torch.cuda.get_device_name() if gpu else bench.environment()["cpu"],
        flops={torch.float32: 2 * n**3 / timings["product"].median},
        bandwidth=2 * source.nbytes / timings["copy"].median,
        source=f"measured here: {n} x {n} product, {source.nbytes >> 20} MiB copy",
    )
