"""Dataclasses of tensors: what batches, and the codes the clocks keep, are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, Self

import torch
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


def _flatten(tree: TensorTree) -> tuple[list[Any], Context]:
    """What is there; and the names of that, and of the fields that are None."""
    values = {f.name: getattr(tree, f.name) for f in fields(tree)}
    given = [name for name, value in values.items() if value is not None]
    none = [name for name, value in values.items() if value is None]
    return [values[name] for name in given], (given, none)


def _flatten_with_keys(tree: TensorTree) -> tuple[list[tuple[Any, Any]], Context]:
    values, context = _flatten(tree)
    return list(zip(map(GetAttrKey, context[0]), values, strict=True)), context
