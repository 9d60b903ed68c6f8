"""Trees of tensors: what holds for one tensor holds for all of them."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import (
    keystr,
    tree_flatten,
    tree_leaves,
    tree_leaves_with_path,
    tree_map,
    tree_unflatten,
)

from recsys_edu.tree import TensorTree, stack


@dataclass(frozen=True)
class Leaf(TensorTree):
    a: Tensor
    b: Tensor | None


@dataclass(frozen=True)
class Tree(TensorTree):
    leaf: Leaf
    c: Tensor


@dataclass(frozen=True)
class Grown(Leaf):
    c: Tensor | None


def tree(b=None):
    return Tree(Leaf(torch.arange(6).reshape(3, 2), b), torch.arange(3.0))


def test_map_reaches_every_tensor_and_keeps_the_shape_of_the_tree():
    before = tree(b=torch.ones(3))
    after = before.map(lambda tensor: tensor + 1)
    assert isinstance(after, Tree) and isinstance(after.leaf, Leaf)
    assert after.leaf.a.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert after.leaf.b.tolist() == [2, 2, 2]
    assert after.c.tolist() == [1, 2, 3]
    assert before.c.tolist() == [0, 1, 2]


def test_none_stays_none():
    assert tree().map(torch.neg).leaf.b is None
    assert tree()[0].leaf.b is None
    assert tree().to("meta").leaf.b is None


def test_to_moves_every_tensor():
    moved = tree(b=torch.ones(3)).to("meta")
    tensors = [moved.leaf.a, moved.leaf.b, moved.c]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert tree().to(torch.device("cpu")).c.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "index",
    [
        1,
        slice(1, None),
        None,
        torch.tensor([2, 0, 2]),
        torch.tensor([[0, 1], [2, 2]]),
        torch.tensor([True, False, True]),
    ],
)
def test_an_index_is_every_tensor_s_index(index):
    whole = tree(b=torch.rand(3, 1, 2))
    part = whole[index]
    assert torch.equal(part.leaf.a, whole.leaf.a[index])
    assert torch.equal(part.leaf.b, whole.leaf.b[index])
    assert torch.equal(part.c, whole.c[index])


def test_pytorch_goes_through_a_tree_and_puts_it_together_again():
    """Also one whose class another inherits from, and one with nothing in a place."""
    for before in (tree(), tree(b=torch.ones(3)), Grown(torch.ones(2), None, None)):
        after = tree_map(torch.neg, before)
        assert type(after) is type(before)
        expected = before.map(torch.neg)
        for got, negated in zip(tree_leaves(after), tree_leaves(expected), strict=True):
            assert torch.equal(got, negated)
    leaves, spec = tree_flatten(tree())
    assert len(leaves) == 2 and tree_unflatten(list("xy"), spec).leaf.a == "x"
    [(path, _), _] = tree_leaves_with_path(tree())
    assert keystr(path) == ".leaf.a"


def test_pinning_pins_every_tensor(monkeypatch):
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: pinned.append(x) or x + 1)
    before = tree(b=torch.ones(3))
    after = before.pin_memory()
    assert len(pinned) == 3 and torch.equal(after.leaf.b, before.leaf.b + 1)


def test_slices_are_views():
    whole = tree()
    whole[1:].c.zero_()
    assert whole.c.tolist() == [0, 0, 0]


# Several batches as one.


@dataclass(frozen=True)
class Code(TensorTree):
    k: Tensor  # [B, 2, N, 3]
    mask: Tensor  # [B, 1, N]
    now: Tensor  # [B, 1]


def code(b, n, start=1.0):
    k = start + torch.arange(b * 2 * n * 3.0).view(b, 2, n, 3)
    return Code(k, torch.ones(b, 1, n, dtype=torch.bool), torch.full((b, 1), n))


def test_codes_of_ragged_histories_stack_and_masks_say_so():
    parts = [code(1, 4), code(2, 0), code(1, 2)]
    whole = stack(parts)
    assert isinstance(whole, Code) and whole.k.shape == (4, 2, 4, 3)
    assert whole.mask.sum(-1)[:, 0].tolist() == [4, 0, 0, 2]
    assert whole.now.tolist() == [[4], [0], [0], [2]]
    assert torch.equal(whole.k[:1], parts[0].k)
    assert torch.equal(whole.k[3:, :, :2], parts[2].k)
    assert not whole.k[1:3].any() and not whole.k[3, :, 2:].any()


def test_trees_in_trees_and_tensors_stack():
    whole = stack([tree(b=torch.ones(3)), tree(b=torch.zeros(3))])
    assert whole.leaf.a.shape == (6, 2) and whole.c.tolist() == [0, 1, 2, 0, 1, 2]
    assert whole.leaf.b.tolist() == [1, 1, 1, 0, 0, 0]
    assert stack([tree(), tree()]).leaf.b is None
    assert stack([torch.ones(1, 2), torch.ones(0, 2)]).tolist() == [[1, 1]]


def test_nothing_stacks_to_nothing():
    assert stack([]) is None and stack([None, None]) is None


def test_what_no_mask_covers_is_not_padded():
    with pytest.raises(ValueError, match=r"sizes \[2, 3\] .* no mask"):
        stack([torch.ones(1, 2), torch.ones(1, 3)])
    long = code(1, 4)
    with pytest.raises(ValueError, match="no mask"):  # k is longer than its mask says
        stack([Code(code(1, 5).k, long.mask, long.now), code(1, 2)])


def test_some_without_a_code_are_refused():
    with pytest.raises(ValueError, match="some of these are None"):
        stack([None, code(1, 2)])
    with pytest.raises(ValueError, match="some of these are None"):
        stack([tree(b=torch.ones(3)), tree()])
