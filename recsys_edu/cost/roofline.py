"""The least time that work can take on a machine: Williams et al.'s roofline."""

from typing import Literal

import torch

from recsys_edu.cost.clocks import Cost
from recsys_edu.cost.hardware import Device


def roofline_seconds(
    cost: Cost, device: Device, dtype: torch.dtype = torch.float32
) -> float:
    """max(flops / peak, bytes / bandwidth): no code that costs this much is faster.

    Raises KeyError if the device has no peak for `dtype`.
    """
    return max(cost.flops / device.peak(dtype), cost.bytes / device.bandwidth)


def binding_roof(
    cost: Cost, device: Device, dtype: torch.dtype = torch.float32
) -> Literal["compute", "memory"]:
    """Which roof sets that time: "compute" from the ridge on, "memory" below it."""
    return "compute" if cost.intensity >= device.ridge(dtype) else "memory"
