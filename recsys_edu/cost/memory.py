"""How much memory a value keeps alive."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from numbers import Number

import numpy as np
import torch


def nbytes(obj: object) -> int:
    """Bytes of memory that `obj` keeps alive.

    obj  a tensor or array, or a dataclass, mapping, list or tuple of them, nested;
         plain numbers, strings and None inside weigh nothing

    A storage counts once, however many tensors share it, and whole, since a view of
    a part keeps all of it. Raises TypeError for other types.

    Example:
        >>> table = torch.zeros(10, 8)
        >>> nbytes(table), nbytes([table, table[:2]])
        (320, 320)
    """
    return sum(dict(_storages(obj)).values())


def storage_key(tensor: torch.Tensor) -> int:
    """The identity of a tensor's storage: equal for views, also on the meta device."""
    return tensor.untyped_storage()._cdata


def _storages(obj: object) -> Iterator[tuple[int, int]]:
    """(identity, bytes) of each storage below `obj`, repeated where it is shared."""
    if isinstance(obj, torch.Tensor):
        yield storage_key(obj), obj.untyped_storage().nbytes()
    elif isinstance(obj, np.ndarray):
        while isinstance(obj.base, np.ndarray):
            obj = obj.base
        yield id(obj), obj.nbytes
    elif is_dataclass(obj) and not isinstance(obj, type):
        yield from _storages([getattr(obj, field.name) for field in fields(obj)])
    elif isinstance(obj, Mapping):
        yield from _storages(list(obj.values()))
    elif isinstance(obj, list | tuple):
        for value in obj:
            yield from _storages(value)
    elif not isinstance(obj, str | Number | None):
        raise TypeError(f"cannot weigh a {type(obj).__name__}")
