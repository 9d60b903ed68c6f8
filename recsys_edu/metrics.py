"""How good a ranking is: AUC, normalized entropy, calibration, and their intervals.

Over pooled rows here; within requests in :mod:`recsys_edu.ranking`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor


@dataclass(frozen=True)
class Metrics:
    """What a model's click probabilities are worth on one set of impressions.

    auc          chance that a clicked impression scores above one that was not
    ne           normalized entropy: log loss / entropy of the base rate (He et al.,
                 2014); 1 is what always predicting the base rate gets, lower is better
    calibration  sum of probabilities / number of clicks; 1 is calibrated
    """

    auc: float
    ne: float
    calibration: float

    def __str__(self) -> str:
        return (
            f"AUC {self.auc:.4f}, NE {self.ne:.4f}, calibration {self.calibration:.3f}"
        )


@dataclass(frozen=True)
class Interval:
    """A mean over n runs, or n users, and its confidence interval [low, high].

    Prints as mean ± half. A bootstrap's bounds are quantiles, which need not lie
    equally far from the mean; then both are printed.

    Example:
        >>> print(Interval(0.72, low=0.70, high=0.74, n=5))
        0.7200 ± 0.0200 (n = 5)
        >>> print(Interval(0.72, low=0.69, high=0.74, n=94))
        0.7200 (0.6900 to 0.7400; n = 94)
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        up, down = self.high - self.mean, self.mean - self.low
        if abs(up - down) <= 1e-6 * (self.high - self.low):  # but for rounding
            return f"{self.mean:.4f} ± {up:.4f} (n = {self.n})"
        return f"{self.mean:.4f} ({self.low:.4f} to {self.high:.4f}; n = {self.n})"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def evaluate(
    label: ArrayLike | Tensor,
    probability: ArrayLike | Tensor,
    base_rate: float | None = None,
) -> Metrics:
    """AUC, NE and calibration of `probability` [E] in [0, 1] for `label` [E] in {0, 1}.

    base_rate  click rate that NE is normalized by; that of `label` unless given

    Tensors may be of any type, on any device, and still in a graph.

    A probability of exactly 0 or 1 on the wrong label enters the log loss as the
    nearest float64, so that it costs much (36 nats) but not infinitely much.
    Raises ValueError for unequal shapes, NaN, values out of range, labels that are
    all alike and a base rate outside (0, 1).

    Example:
        >>> print(evaluate(label=[1, 0, 1, 0], probability=[0.9, 0.2, 0.6, 0.7]))
        AUC 0.7500, NE 0.7370, calibration 1.200
    """
    label, probability = as_float64(label), as_float64(probability)
    require_same_rows("label", label, "probability", probability)
    require("label", label, (label == 0) | (label == 1), "0 or 1")
    require_probabilities("probability", probability)
    clicks = label.sum()
    if clicks in {0, len(label)}:
        raise ValueError(
            "AUC needs clicked and unclicked rows, "
            f"got {clicks:.0f} clicks in {len(label)} rows"
        )
    rate = clicks / len(label) if base_rate is None else base_rate
    if not 0 < rate < 1:
        raise ValueError(f"base rate must lie between 0 and 1, got {rate}")
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    return Metrics(
        auc=float(roc_auc_score(label, probability)),
        ne=float(log_loss(label, probability) / entropy),
        calibration=float(probability.sum() / clicks),
    )


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean over seeds with Student's t interval: mean ± t(n - 1) s / sqrt(n).

    Raises ValueError for fewer than two values, which have no spread.

    Example:
        >>> print(mean_interval([0.71, 0.72, 0.73]))
        0.7200 ± 0.0248 (n = 3)
    """
    sample = np.asarray(values, dtype=np.float64)
    n = len(sample)
    if n < 2:
        raise ValueError(f"an interval needs at least 2 values, got {n}")
    mean = float(sample.mean())
    error = float(sample.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf((1 + confidence) / 2, df=n - 1)) * error
    return Interval(mean, mean - half, mean + half, n)


def difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Mean of a less mean of b, runs that share no luck: Welch's t interval.

    Its n is the number of runs of the smaller sample. Raises ValueError for fewer than
    two values of either.
    """
    n = min(len(a), len(b))
    if n < 2:
        raise ValueError(f"an interval needs at least 2 values of each, got {n}")
    test = stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(confidence)
    return Interval(float(np.mean(a) - np.mean(b)), float(low), float(high), n)


def next_run(values: Sequence[float], confidence: float = 0.99) -> Interval:
    """Where one more run is expected: mean ± t(n - 1) s sqrt(1 + 1 / n).

    The prediction interval of n runs alike; it holds a new run, not their mean. Raises
    ValueError for fewer than two values.
    """
    of_mean = mean_interval(values, confidence)
    half = (of_mean.high - of_mean.mean) * math.sqrt(of_mean.n + 1)
    return Interval(of_mean.mean, of_mean.mean - half, of_mean.mean + half, of_mean.n)


def expected_auc(score: ArrayLike | Tensor, p: ArrayLike | Tensor) -> float:
    """AUC of ranking by `score` [E] when labels are drawn as Bernoulli(p), p [E].

    Pair (i, j) counts when i is clicked and j is not, which has weight p_i (1 - p_j):

        sum over i != j of p_i (1 - p_j) ([s_i > s_j] + [s_i = s_j] / 2)
        ----------------------------------------------------------------
                     sum over i != j of p_i (1 - p_j)

    the expected number of pairs in the right order over the expected number of pairs.
    One sort: O(E log E). Raises ValueError for unequal shapes, NaN, p outside [0, 1]
    and a p under which no click can be compared with a non-click.
    """
    score, p = as_float64(score), as_float64(p)
    require_same_rows("score", score, "p", p)
    require("score", score, ~np.isnan(score), "numbers")
    require_probabilities("p", p)
    if len(p) < 2 or (p == 0).all() or (p == 1).all():
        raise ValueError("p leaves no pair of a click and a non-click to compare")
    q = 1 - p
    # Rows of equal score are one group; groups come in ascending order of score.
    _, group = np.unique(score, return_inverse=True)
    click = np.bincount(group, weights=p)
    skip = np.bincount(group, weights=q)
    itself = p @ q  # what the pairs i = j would add to a product of sums
    below = np.cumsum(skip) - skip
    right = click @ below + (click @ skip - itself) / 2
    total = click.sum() * skip.sum() - itself
    return float(right / total)


def best_auc(p: ArrayLike | Tensor) -> float:
    """The AUC that no model can beat when labels are Bernoulli(p): ranking by p itself.

    `expected_auc(p, p)`. It stays below 1 because the label is a coin: rows that rank
    low are clicked now and then.
    """
    return expected_auc(p, p)


def as_float64(values: ArrayLike | Tensor) -> np.ndarray:
    if isinstance(values, Tensor):  # NumPy knows no bfloat16, and takes no gradients
        values = values.detach().cpu().to(torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)


def require_same_rows(name: str, a: np.ndarray, other: str, b: np.ndarray) -> None:
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(
            f"{name} and {other} must be [E] and equally long, "
            f"got {list(a.shape)} and {list(b.shape)}"
        )


def require(name: str, values: np.ndarray, valid: np.ndarray, what: str) -> None:
    if not valid.all():
        row = int(np.argmin(valid))
        raise ValueError(f"{name} must be {what}, got {values[row]} in row {row}")


def require_probabilities(name: str, values: np.ndarray) -> None:
    require(name, values, (values >= 0) & (values <= 1), "in [0, 1]")
