"""Exercises that check themselves: not tried yet, wrong and how, or right.

Each check shows a small card (text outside a notebook) and returns whether the
attempt is right. An attempt still to be written is `...`, or a function whose body is
`...`: that is never an error, so that a chapter runs before anyone has solved it.
"""

import copy
import traceback
from collections.abc import Callable, Sequence

from IPython.display import display

from recsys_edu.check.cards import Card
from recsys_edu.check.differences import Mismatch, brief, mismatch

__all__ = ["claim", "function", "value"]


def value(name: str, got: object, expected: object, tol: float = 1e-5) -> bool:
    """Check a number, string, tensor, or a list, tuple or dict of them.

    Shapes are compared before values. Integers and booleans must be equal; floats may
    differ by tol * (1 + |expected|).
    """
    if _is_blank(got):
        return _blank(name)
    return _report(name, mismatch(got, expected, tol))


def function(
    name: str,
    attempt: Callable[..., object],
    reference: Callable[..., object],
    cases: Sequence[tuple],
    tol: float = 1e-5,
) -> bool:
    """Check the reader's function against a reference on every case, in order.

    cases  tuples of arguments; attempt and reference each get a copy of their own

    Shows the first case that fails: its inputs and how the results differ, or what the
    attempt raised and on which of its lines.
    """
    if _is_blank(attempt):
        return _blank(name)
    for case in cases:
        expected = reference(*copy.deepcopy(case))
        inputs = "for inputs " + ", ".join(brief(argument) for argument in case)
        try:
            got = attempt(*copy.deepcopy(case))
        except Exception as error:
            return _show(Card("fail", name, f"{inputs}: {_raised(error)}"))
        if _is_blank(got):
            return _blank(name, "not tried yet: the function returns nothing")
        wrong = mismatch(got, expected, tol)
        if wrong is not None:
            return _report(name, Mismatch(f"{inputs}: {wrong.text}", wrong.grid))
    return _report(name, None)


def claim(name: str, condition: object, hint: str) -> bool:
    """Check that a condition holds; `hint` is what to think about when it does not."""
    if _is_blank(condition):
        return _blank(name)
    return _report(name, None if condition else Mismatch(hint))


def _is_blank(attempt: object) -> bool:
    return attempt is None or attempt is ...


def _blank(name: str, detail: str = "not tried yet") -> bool:
    return _show(Card("blank", name, detail))


def _report(name: str, wrong: Mismatch | None) -> bool:
    if wrong is None:
        return _show(Card("pass", name))
    return _show(Card("fail", name, wrong.text, wrong.grid))


def _show(card: Card) -> bool:
    display(card)
    return card.status == "pass"


def _raised(error: Exception) -> str:
    """The reader's error, and the line of their function that it came through."""
    frames = traceback.extract_tb(error.__traceback__)[1:2]  # the first is ours
    where = "".join(f" (line {frame.lineno}: {frame.line})" for frame in frames)
    return f"{type(error).__name__}: {error}{where}"
