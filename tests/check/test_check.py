"""Checks tell a blank attempt, a wrong one and a right one apart, and say how."""

import numpy as np
import pytest
import torch

from recsys_edu import check
from recsys_edu.check.cards import Card
from recsys_edu.cost import Cost


@pytest.fixture
def said(capsys):
    """What the check printed, without the last line end."""
    return lambda: capsys.readouterr().out.rstrip("\n")


def test_right(said):
    assert check.value("Exercise 1", 3, 3) is True
    assert said() == "✓ Exercise 1"


@pytest.mark.parametrize("attempt", [..., None])
def test_blank(said, attempt):
    assert check.value("Exercise 1", attempt, 3) is False
    assert said() == "○ Exercise 1: not tried yet"
    assert check.function("Exercise 1", attempt, abs, [(1,)]) is False
    assert said() == "○ Exercise 1: not tried yet"
    assert check.claim("Exercise 1", attempt, "hint") is False
    assert said() == "○ Exercise 1: not tried yet"


WRONG = [
    (4, 3, "expected 3, got 4"),
    (0.25, 0.5, "expected 0.5, got 0.25"),
    (1e6 + 1, 1_000_000, "expected 1000000, got 1e+06"),
    (2**60 + 1, 2**60, f"expected {2**60}, got {2**60 + 1}"),
    (1.0001, 1.0, "expected 1, got 1.0001"),
    (0.12345678, 0.123, "expected 0.123, got 0.123457"),
    ("b", "a", "expected 'a', got 'b'"),
    (3, "a", "expected 'a', got 3"),
    (np.zeros(2), "a", "expected 'a', got [0.0, 0.0]"),
    ("a", 3, "expected numbers, got 'a'"),
    (Cost(1, 2), Cost(1, 3), "expected Cost(flops=1, bytes=3), got Cost(flops=1, "),
    ([[1], [2, 3]], [1, 2], "expected numbers, got [[1], [2, 3]]"),
    (torch.ones(2, 3), torch.ones(3, 2), "expected shape [3, 2], got [2, 3]"),
    (1.0, torch.ones(1), "expected shape [1], got []"),
    ([1, 2], ["a", "b", "c"], "expected 3 items, got [1, 2]"),
    ((1, "b"), (1, "a"), "at [1]: expected 'a', got 'b'"),
    ({"x": 1}, {"y": 1}, "expected keys ['y'], got {'x': 1}"),
    ({"x": 1.5, "s": "t"}, {"x": 1.0, "s": "t"}, "at ['x']: expected 1, got 1.5"),
    (float("nan"), 1.0, "expected 1, got nan"),
]


@pytest.mark.parametrize(("got", "expected", "how"), WRONG)
def test_wrong_says_how(said, got, expected, how):
    assert check.value("Exercise 1", got, expected) is False
    assert said().startswith(f"✗ Exercise 1: {how}")


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (1.0 + 1e-6, 1.0),
        (torch.ones(2).bfloat16().requires_grad_(), [1.0, 1.0]),
        (torch.tensor([True, False]), [1, 0]),
        (np.float32(0.1), 0.1),
        (np.nan, np.nan),
        (torch.empty(0, 3), np.empty((0, 3))),
        ({"auc": (0.7, "s")}, {"auc": (0.7, "s")}),
        (Cost(1, 2), Cost(1, 2)),
    ],
)
def test_right_in_many_types(got, expected):
    assert check.value("Exercise 1", got, expected) is True


def test_tolerance_is_the_callers(said):
    assert check.value("Exercise 1", 1.05, 1.0, tol=0.1) is True
    assert check.value("Exercise 1", 1.05, 1.0, tol=0.01) is False


def test_numbers_that_print_alike_get_more_digits(said):
    check.value("Exercise 1", 0.12345671, 0.12345672, tol=0)
    assert said() == "✗ Exercise 1: expected 0.12345672, got 0.12345671"


def test_a_small_tensor_is_drawn_with_its_wrong_cells(said):
    check.value("Exercise 1", [[1, 2], [3, 5]], torch.tensor([[1, 2], [3, 4]]))
    assert said().splitlines() == [
        "✗ Exercise 1: 1 of 4 values differ; first at [1, 1]: expected 4, got 5",
        "    1      2",
        "    3  5 ≠ 4",
    ]


def test_a_large_tensor_is_not_drawn(said):
    check.value("Exercise 1", np.zeros((9, 9)), np.ones((9, 9)))
    assert len(said().splitlines()) == 1


def double(x):
    return 2 * x


def test_a_function_is_tried_on_every_case(said):
    def abs_of(x):
        return x if x > -5 else -x

    cases = [(1,), (-7,), (-2,), (-3,)]
    assert check.function("Exercise 2", abs_of, abs, cases) is False
    assert said() == "✗ Exercise 2: for inputs -2: expected 2, got -2"
    assert check.function("Exercise 2", abs_of, abs, cases[:2]) is True
    assert said() == "✓ Exercise 2"


def test_a_function_without_a_body_is_blank(said):
    def attempt(x): ...

    assert check.function("Exercise 2", attempt, double, [(1,)]) is False
    assert said() == "○ Exercise 2: not tried yet: the function returns nothing"


def test_large_inputs_are_told_by_shape(said):
    check.function("Exercise 2", lambda x, n: x, lambda x, n: 2 * x,
                   [(torch.ones(4, 8), 2)])  # fmt: skip
    assert said().splitlines()[0] == (
        "✗ Exercise 2: for inputs Tensor [4, 8], 2: 32 of 32 values differ; "
        "first at [0, 0]: expected 2, got 1"
    )


def test_an_exception_is_shown_with_its_line(said):
    def attempt(x):
        return x / 0

    assert check.function("Exercise 2", attempt, double, [(1,)]) is False
    told = said()
    assert told.startswith(
        "✗ Exercise 2: for inputs 1: ZeroDivisionError: division by zero (line "
    )
    assert told.endswith(": return x / 0)")


def test_a_wrong_number_of_parameters_is_shown(said):
    check.function("Exercise 2", lambda: 1, double, [(1,)])
    assert "TypeError: " in said()


def test_an_interrupt_is_not_an_answer():
    def attempt(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.function("Exercise 2", attempt, double, [(1,)])


def test_an_attempt_that_edits_its_input_harms_nobody():
    def attempt(x):
        x *= 2
        return x

    case = (torch.ones(2),)
    assert check.function("Exercise 2", attempt, double, [case]) is True
    assert case[0].tolist() == [1.0, 1.0]


def test_claim(said):
    assert check.claim("Exercise 3", np.bool_(True), "look at the mask") is True
    assert said() == "✓ Exercise 3"
    assert check.claim("Exercise 3", torch.tensor(False), "look at the mask") is False
    assert said() == "✗ Exercise 3: look at the mask"


def test_a_card_is_html_in_a_notebook():
    grid = ((("1", True), ("2 ≠ 3", False)),)
    page = Card("fail", "E <1>", "1 < 2", grid)._repr_html_()
    assert 'class="tc-check tc-check-fail" role="status"' in page
    assert "E &lt;1&gt;" in page
    assert "1 &lt; 2" in page
    assert page.count("background:#FBE3D6") == 1
    assert "tc-check-pass" in Card("pass", "E")._repr_html_()
    assert "<table" not in Card("blank", "E")._repr_html_()
