"""Chapter 02: stubs are blank, solutions pass, wrong answers are refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recsys_edu.batch import at_the_end
from recsys_edu.check import chapter_02 as exercise
from recsys_edu.encoders.base import Events, HistoryEncoder, readable
from recsys_edu.encoders.target_attention import DIN, HiddenEvents, HiddenItems

CHAPTER = Path(__file__).parents[2] / "chapters/02_reading_the_history.ipynb"
EXERCISES = {
    1: exercise.decayed_mean,
    2: exercise.move_padding,
    3: exercise.count_leaks,
    4: exercise.port_din,
    5: exercise.bytes_kept,
}


# --- 1: a mean that forgets -----------------------------------------------------------


def weights(mask, half_life):
    age = mask.sum(1, keepdim=True) - 1 - torch.arange(mask.shape[1])
    return torch.where(mask, 2 ** (-age / half_life), 0.0)


def plain_mean(events, mask, half_life):
    return (events * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def mean_of_the_padding_too(events, mask, half_life):
    return events.mean(1)


def empty_is_nan(events, mask, half_life):
    w = weights(mask, half_life)
    return (w[..., None] * events).sum(1) / w.sum(1, keepdim=True)


def bare_sum(events, mask, half_life):
    return (weights(mask, half_life)[..., None] * events).sum(1)


def divided_by_the_count(events, mask, half_life):
    return bare_sum(events, mask, half_life) / mask.sum(1, keepdim=True).clamp(min=1)


def forgets_the_newest(events, mask, half_life):
    w = torch.where(mask, 2 ** (-torch.arange(mask.shape[1]) / half_life), 0.0)
    return (w[..., None] * events).sum(1) / w.sum(1, keepdim=True).clamp(min=1)


def age_from_the_rectangles_end(events, mask, half_life):
    age = mask.shape[1] - 1 - torch.arange(mask.shape[1])
    w = torch.where(mask, 2 ** (-age / half_life), 0.0)
    return (w[..., None] * events).sum(1) / w.sum(1, keepdim=True).clamp(min=1)


def e_instead_of_2(events, mask, half_life):
    age = mask.sum(1, keepdim=True) - 1 - torch.arange(mask.shape[1])
    w = torch.where(mask, torch.exp(-age / half_life), 0.0)
    return (w[..., None] * events).sum(1) / w.sum(1, keepdim=True).clamp(min=1)


def half_life_left_out(events, mask, half_life):
    w = weights(mask, 1.0)
    return (w[..., None] * events).sum(1) / w.sum(1, keepdim=True).clamp(min=1)


# --- 2: padding -----------------------------------------------------------------------


def left_as_it_is(history):
    return history


def flipped(history):
    return history.map(lambda tensor: tensor.flip(1))


def rolled_by_what_the_first_row_needs(history):
    shift = int((~history.mask[0]).sum())
    return history.map(lambda tensor: tensor.roll(-shift, dims=1))


def mask_alone(history):
    return replace(history, mask=at_the_end(history).mask)


def items_and_mask_alone(history):
    moved = at_the_end(history)
    return replace(history, mask=moved.mask, item=moved.item)


def times_left_behind(history):
    return replace(at_the_end(history), timestamp=history.timestamp)


def events_reversed(history):
    return at_the_end(flipped(history))


def cut_to_the_longest(history):
    n = int(history.mask.sum(1).max())
    return at_the_end(history)[:, :n]


def each_tensor_sorted(history):
    return history.map(lambda tensor: tensor.sort(dim=1, descending=True).values)


# --- 3: leaks -------------------------------------------------------------------------


def later_than_now(past, now):
    filled = past.end > past.start
    return int((past.timestamp[past.end[filled] - 1] > now[filled]).sum())


def empty_reads_a_stranger(past, now):
    return int((past.timestamp[past.end - 1] >= now).sum())


def oldest_event(past, now):
    filled = past.end > past.start
    return int((past.timestamp[past.start[filled]] >= now[filled]).sum())


def share(past, now):
    return exercise._count_leaks(past, now) / len(now)


def events_not_requests(past, now):
    ranges = zip(past.start, past.end, now, strict=True)
    return sum(int((past.timestamp[a:b] >= t).sum()) for a, b, t in ranges)


def one_past_the_end(past, now):
    last = np.minimum(past.end, len(past.timestamp) - 1)
    return int((past.timestamp[last] >= now).sum())


def no_leaks(past, now):
    return 0


# --- 4: a port ------------------------------------------------------------------------


def port(theirs, event, item, product, *, bias=True):
    """A DIN whose parts are sums of the blocks of ``theirs``: {block: sign} each."""
    blocks = theirs.first.weight.data.chunk(4, dim=1)
    hidden, d = blocks[0].shape
    din = DIN(d, hidden=hidden)
    for part, sum_of in ((din.event, event), (din.candidate, item)):
        part.weight.data = sum(sign * blocks[k] for k, sign in sum_of.items())
    din.product.weight.data = blocks[product].clone()
    din.event.bias.data = theirs.first.bias.data * bias
    din.weight.load_state_dict(theirs.weight.state_dict())
    return din


def blocks_in_our_order(theirs):
    return port(theirs, {0: 1, 3: 1}, {1: 1, 3: -1}, 2)


def difference_the_other_way(theirs):
    return port(theirs, {1: 1, 2: 1}, {0: 1, 2: -1}, 3)


def difference_forgotten(theirs):
    return port(theirs, {1: 1}, {0: 1}, 3)


def difference_in_the_event_alone(theirs):
    return port(theirs, {1: 1, 2: -1}, {0: 1}, 3)


def sides_swapped(theirs):
    return port(theirs, {0: 1, 2: 1}, {1: 1, 2: -1}, 3)


def product_and_difference_swapped(theirs):
    return port(theirs, {1: 1, 3: -1}, {0: 1, 3: 1}, 2)


def bias_forgotten(theirs):
    return port(theirs, {1: 1, 2: -1}, {0: 1, 2: 1}, 3, bias=False)


def last_layer_forgotten(theirs):
    hidden, d = theirs.first.weight.shape[0], theirs.first.weight.shape[1] // 4
    din, right = DIN(d, hidden=hidden), port(theirs, {1: 1, 2: -1}, {0: 1, 2: 1}, 3)
    din.event, din.candidate, din.product = right.event, right.candidate, right.product
    return din


def their_own_model(theirs):
    return theirs


class NotSplit(HistoryEncoder):
    """Theirs behind the three methods, every pair still on the candidate clock."""

    def __init__(self, theirs):
        super().__init__()
        self.theirs = theirs

    def encode_items(self, items):
        return items

    def encode_history(self, events, context):
        return events

    def fuse(self, items, history):
        return self.theirs(history.vectors, history.mask, items)


# --- 5: bytes -------------------------------------------------------------------------


def kept(pooling, din, transformer):
    return lambda n, d, a, layers: {
        "pooling": pooling(n, d),
        "DIN": din(n, d, a),
        "Transformer": transformer(n, d, layers),
    }


def mean(n, d):
    return 4 * d


def hidden(n, d, a):
    return 4 * n * (d + a)


def cache(n, d, layers):
    return 8 * layers * (1 + n) * d


WRONG = {
    1: [plain_mean, mean_of_the_padding_too, empty_is_nan, bare_sum,
        divided_by_the_count, forgets_the_newest, age_from_the_rectangles_end,
        e_instead_of_2, half_life_left_out],
    2: [left_as_it_is, flipped, rolled_by_what_the_first_row_needs, mask_alone,
        items_and_mask_alone, times_left_behind, events_reversed,
        cut_to_the_longest, each_tensor_sorted],
    3: [later_than_now, empty_reads_a_stranger, oldest_event, share,
        events_not_requests, one_past_the_end, no_leaks],
    4: [blocks_in_our_order, difference_the_other_way, difference_forgotten,
        difference_in_the_event_alone, sides_swapped, product_and_difference_swapped,
        bias_forgotten, last_layer_forgotten, their_own_model, NotSplit],
    5: [
        kept(mean, hidden, lambda n, d, layers: 8 * layers * n * d),  # no start token
        kept(mean, hidden, lambda n, d, layers: 4 * layers * (1 + n) * d),  # keys alone
        kept(mean, hidden, lambda n, d, layers: 8 * (1 + n) * d),  # one layer
        kept(mean, lambda n, d, a: 4 * n * a, cache),  # the events left out
        kept(mean, lambda n, d, a: 4 * n * d, cache),  # the hidden shares left out
        kept(mean, lambda n, d, a: 8 * n * d, cache),  # right where a = d alone
        kept(lambda n, d: 4 * n * d, hidden, cache),  # the events, not their mean
        kept(lambda n, d: d, lambda n, d, a: n * (d + a), lambda n, d, layers:
             2 * layers * (1 + n) * d),  # numbers, not bytes
        lambda n, d, a, layers: {"pooling": 128, "DIN": 65536, "Transformer": 131584},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("number", "wrong"),
    [(number, wrong) for number, answers in WRONG.items() for wrong in answers],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_wrong_answer_is_refused(number, wrong, capsys):
    assert EXERCISES[number](wrong) is False
    assert "not tried yet" not in capsys.readouterr().out


@pytest.mark.parametrize("number", EXERCISES)
@pytest.mark.parametrize("stub", [None, ..., lambda *arguments: None])
def test_a_stub_is_blank(number, stub, capsys):
    assert EXERCISES[number](stub) is False
    assert capsys.readouterr().out.startswith(f"○ Exercise {number}: not tried yet")


def cell(name: str) -> str:
    cells = json.loads(CHAPTER.read_text())["cells"]
    return next("".join(cell["source"]) for cell in cells if cell["id"] == name)


@pytest.mark.parametrize("number", EXERCISES)
def test_the_chapters_attempt_is_blank_and_its_solution_right(number, capsys):
    names = {
        "torch": torch,
        "nn": nn,
        "Tensor": Tensor,
        "Events": Events,
        "HistoryEncoder": HistoryEncoder,
        "HiddenEvents": HiddenEvents,
        "HiddenItems": HiddenItems,
        "readable": readable,
        "exercise": exercise,
    }
    exec(cell("din"), names)  # the chapter's DIN is its own
    exec(cell(f"attempt-{number}"), names)
    assert capsys.readouterr().out.startswith(f"○ Exercise {number}: not tried yet")
    exec(cell(f"solution-{number}"), names)
    assert capsys.readouterr().out.strip() == f"✓ Exercise {number}"


def test_a_right_port_and_right_bytes_pass():
    assert EXERCISES[4](lambda theirs: port(theirs, {1: 1, 2: -1}, {0: 1, 2: 1}, 3))
    assert EXERCISES[5](kept(mean, hidden, cache))
