"""The exercises of chapter 00, each with what it expects and the cases it tries."""

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from recsys_edu.check import function, value
from recsys_edu.data import InteractionLog
from recsys_edu.metrics import best_auc
from recsys_edu.ranking import by_request


def exercise_1(attempt: Callable) -> bool:
    """AUC within the request: ties, requests of one kind, rows in any order."""
    draws = np.random.default_rng(0)
    shapes = ((8, 1), (40, 2), (40, 12))
    cases = [
        tuple(draws.integers(k, size=size) for k in (2, 9, pages))
        for size, pages in shapes
    ]

    def reference(label: np.ndarray, score: np.ndarray, request: np.ndarray) -> float:
        return by_request(label, score, request).means().auc

    return function("Exercise 1", attempt, reference, cases)


def exercise_2(attempt: object, log: InteractionLog) -> bool:
    """Events that enter histories with those of the same user and second."""
    moments = np.stack([log.user, log.timestamp])
    size = np.unique(moments, axis=1, return_counts=True)[1]
    return value("Exercise 2", attempt, int((size * (size - 1)).sum()))


def exercise_3(attempt: object, log: InteractionLog) -> bool:
    """Share of the users' last rows with a later row among all others."""
    last = len(log) - 1 - np.unique(log.user[::-1], return_index=True)[1]
    train_end = np.delete(log.timestamp, last).max()
    return value("Exercise 3", attempt, (log.timestamp[last] < train_end).mean())


def exercise_4(attempt: Callable) -> bool:
    """Log odds moved by the one constant that makes the calibration 1."""
    draws = np.random.default_rng(0)
    rare = draws.uniform(0.01, 0.1, 50)
    bold = expit(draws.normal(0, 3, 50))
    cases = [
        (np.array([0.8, 0.6, 0.5, 0.3, 0.1]), np.array([1, 0, 1, 0, 0])),
        (rare, (np.arange(50) % 2)),
        (bold, (np.arange(50) % 10 == 0).astype(int)),
    ]

    def reference(p: np.ndarray, y: np.ndarray) -> np.ndarray:
        return expit(
            logit(p) + brentq(lambda c: (expit(logit(p) + c) - y).sum(), -30, 30)
        )

    return function("Exercise 4", attempt, reference, cases, tol=1e-4)


def exercise_5(attempt: Callable) -> bool:
    """The best expected AUC, with ties and in any order."""
    cases = [
        ([0.9, 0.5, 0.1],),
        ([0.2, 0.5, 0.5, 0.7],),
        (np.random.default_rng(0).uniform(0.05, 0.95, 6).tolist(),),
    ]
    return function("Exercise 5", attempt, best_auc, cases)
