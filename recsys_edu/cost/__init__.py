"""What work costs, and which clock pays: counts, memory, rooflines."""

from recsys_edu.cost.clocks import Clock, Cost
from recsys_edu.cost.counting import count
from recsys_edu.cost.hardware import (
    DEVICES,
    Device,
    data_sheet,
    measure_this_machine,
)
from recsys_edu.cost.memory import nbytes
from recsys_edu.cost.roofline import binding_roof, roofline_seconds

__all__ = [
    "DEVICES",
    "Clock",
    "Cost",
    "Device",
    "binding_roof",
    "count",
    "data_sheet",
    "measure_this_machine",
    "nbytes",
    "roofline_seconds",
]
