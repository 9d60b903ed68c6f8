"""The three clocks that work can run on, and what a piece of work costs."""

import math
from dataclasses import dataclass
from enum import StrEnum


class Clock(StrEnum):
    """How often a piece of work is done: the question that every design answers.

    ITEM       once per item, offline, when the catalogue or the weights change
    REQUEST    once per user request, while candidates are retrieved
    CANDIDATE  once per candidate, inside the latency budget
    """

    ITEM = "item"
    REQUEST = "request"
    CANDIDATE = "candidate"

    @property
    def label(self) -> str:
        """The clock's name in prose and legends: "item clock"."""
        return f"{self.value} clock"

    @property
    def tick(self) -> str:
        """What one tick is: "per item"."""
        return f"per {self.value}"


@dataclass(frozen=True)
class Cost:
    """What work costs on any machine: FLOPs done and bytes moved.

    flops  2 for each multiply-add of a matrix product
    bytes  bytes read plus bytes written by the operations' tensors

    Costs add, and multiply by a number of ticks: `request + 512 * candidate`.
    A cost of many ticks divides into the cost of one, rounded down: `cost // 512`.
    """

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, ticks: int) -> "Cost":
        return Cost(self.flops * ticks, self.bytes * ticks)

    __rmul__ = __mul__

    def __floordiv__(self, ticks: int) -> "Cost":
        return Cost(self.flops // ticks, self.bytes // ticks)

    @property
    def intensity(self) -> float:
        """Arithmetic intensity flops / bytes, in FLOP per byte; 0.0 without FLOPs."""
        if self.flops == 0:
            return 0.0
        return self.flops / self.bytes if self.bytes else math.inf
