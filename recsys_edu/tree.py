"""Dataclasses of tensors: what batches, and the codes the clocks keep, are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import GetAttrKey, register_pytree_node

Context = tuple[list[str], list[str]]


class TensorTree:
    """Mixin for a dataclass whose fields are tensors, other such trees, or None.

    PyTorch knows each as a tree too, so that ``torch.export``, ``torch.compile`` and
    ``tree_map`` go through it.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Registers the class; its fields are asked for when there are some."""
        super().__init_subclass__(**options)

        def unflatten(values: Iterable[Any], context: Context) -> TensorTree:
            given, none = context
            return cls(**dict(zip(given, values, strict=True)), **dict.fromkeys(none))

        register_pytree_node(
            cls,
            _flatten,
            unflatten,
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
            flatten_with_keys_fn=_flatten_with_keys,
        )

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same tree with ``fn`` applied to every tensor."""
        return type(self)(*(_map(getattr(self, f.name), fn) for f in fields(self)))

    def to(self, device: torch.device | str) -> Self:
        """The same tree on ``device``."""
        return self.map(lambda tensor: tensor.to(device))

    def pin_memory(self) -> Self:
        """The same tree in memory that a GPU copies by itself; data loaders call it."""
        return self.map(lambda tensor: tensor.pin_memory())

    def __getitem__(self, index: Any) -> Self:
        """Indexes the leading dimensions of every tensor, as ``tensor[index]``."""
        return self.map(lambda tensor: tensor[index])


def _map(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if value is None:
        return None
    return value.map(fn) if isinstance(value, TensorTree) else fn(value)


def stack(trees: Sequence[Any]) -> Any:
    """Several batches as one: [B, ...] and [B', ...] -> [B + B', ...].

    A code of a history has an axis as long as the history, and a ``mask`` [..., N] that
    says which part of it is real. There a shorter one is padded at its end with zeros,
    which its mask then leaves out: codes of users whose histories differ in length
    become one batch. All other axes must agree.

    Args:
        trees: tensors, trees of one class, or None; None where there is none of them.

    Raises:
        ValueError: sizes differ, and no mask says which part would be padding; or some
            are None and others are not.

    Example:
        >>> stack([torch.ones(1, 2), torch.zeros(2, 2)]).tolist()
        [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    """
    return _stacked(trees, None)


def _stacked(trees: Sequence[Any], lengths: list[int] | None) -> Any:
    """As :func:`stack`; tensors may have an axis of these ``lengths``."""
    if all(tree is None for tree in trees):
        return None
    if any(tree is None for tree in trees):
        raise ValueError("some of these are None and others are not")
    if isinstance(trees[0], Tensor):
        return _join(trees, lengths)
    masks = [getattr(tree, "mask", None) for tree in trees]
    lengths = None if masks[0] is None else [mask.shape[-1] for mask in masks]
    columns = ([getattr(tree, f.name) for tree in trees] for f in fields(trees[0]))
    return type(trees[0])(*(_stacked(column, lengths) for column in columns))


def _join(tensors: Sequence[Tensor], lengths: list[int] | None) -> Tensor:
    """Joins leading axes; other axes may be as long as ``lengths`` say, or agree."""
    pad = []  # for each axis from the last on, of each tensor: 0 before it, k behind
    for sizes in zip(*(reversed(t.shape[1:]) for t in tensors), strict=True):
        if len(set(sizes)) > 1 and list(sizes) != lengths:
            raise ValueError(
                f"sizes {sorted(set(sizes))} of one axis differ, and there is no mask "
                "to say which part would be padding"
            )
        pad.append([(0, max(sizes) - size) for size in sizes])
    if not any(after for axis in pad for _, after in axis):
        return torch.cat(list(tensors))
    padded = zip(tensors, zip(*pad, strict=True), strict=True)
    return torch.cat([F.pad(t, sum(axes, start=())) for t, axes in padded])


def _flatten(tree: TensorTree) -> tuple[list[Any], Context]:
    """What is there; and the names of that, and of the fields that are None."""
    values = {f.name: getattr(tree, f.name) for f in fields(tree)}
    given = [name for name, value in values.items() if value is not None]
    none = [name for name, value in values.items() if value is None]
    return [values[name] for name in given], (given, none)


def _flatten_with_keys(tree: TensorTree) -> tuple[list[tuple[Any, Any]], Context]:
    values, context = _flatten(tree)
    return list(zip(map(GetAttrKey, context[0]), values, strict=True)), context
