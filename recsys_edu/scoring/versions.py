"""Which weights a model has: a hash of them, and whether it must be taken again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef


def weights_version(model: nn.Module) -> str:
    """A hash of all parameters and buffers: the same weights, the same version."""
    return version_of(chain(model.named_parameters(), model.named_buffers()))


def version_of(named: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of tensors: of their names, types, shapes and every byte."""
    digest = hashlib.sha256()
    for name, tensor in named:
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()


def tensors_of(*modules: nn.Module) -> list[Tensor]:
    """All parameters and buffers of modules that serve.

    ``modules()`` and ``parameters()`` walk the tree once each and name what they find;
    on the request path one bare walk has to do.

    Raises:
        ValueError: a module is in training mode, where dropout draws anew each time.
    """
    left, found = list(modules), []
    while left:
        parts = (module := left.pop()).__dict__  # looking attributes up is slow here
        if parts["training"]:
            raise ValueError(
                f"{type(module).__name__} is in training mode, where dropout draws "
                "anew each time: call model.eval() first"
            )
        for tensors in (parts["_parameters"], parts["_buffers"]):
            found += tensors.values()
        if children := parts["_modules"]:
            left += [child for child in children.values() if child is not None]
    return [tensor for tensor in found if tensor is not None]


def require_eval(model: nn.Module) -> None:
    """Raises ValueError if any part of a model is in training mode."""
    tensors_of(model)


@dataclass(frozen=True)
class Seen:
    """What PyTorch knows of changes to some tensors: equal looks, the same numbers.

    For each tensor its storage, its place there, and how often PyTorch has written to
    it. Two kinds of change are not counted: those written through ``tensor.data``, and
    all of a tensor made under ``torch.inference_mode``, which is like no other look.
    A change that is under way is counted when it is complete.
    """

    marks: list[tuple[int, int, int]] | None
    held: list[StorageWeakRef]
    """Weak, so that no old weights stay; what it refers to is not given anew."""

    @classmethod
    def at(cls, tensors: list[Tensor]) -> Seen:
        """A look to be compared with later ones."""
        return cls(_marks(tensors), [StorageWeakRef(_storage(t)) for t in tensors])

    def still(self, tensors: list[Tensor]) -> bool:
        """Whether these are the same tensors, not written to since."""
        return self.marks is not None and self.marks == _marks(tensors)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _marks(tensors: list[Tensor]) -> list[tuple[int, int, int]] | None:
    try:
        return [(t.untyped_storage()._cdata, t.data_ptr(), t._version) for t in tensors]
    except RuntimeError:  # "Inference tensors do not track version counter."
        return None


class Watch:
    """A version of some tensors, taken again only when PyTorch has seen a change.

    Args:
        take: computes it; a hash, say.
    """

    def __init__(self, take: Callable[[], str]) -> None:
        self._take = take
        self._last: tuple[Seen, str] | None = None  # one reference: threads read both

    def __call__(self, tensors: list[Tensor]) -> str:
        """The version of these tensors."""
        last = self._last
        if last is None or not last[0].still(tensors):
            seen = Seen.at(tensors)  # before the hash: a change in between is seen
            last = self._last = seen, self._take()
        return last[1]

    def forget(self) -> None:
        """Takes the version again at the next call."""
        self._last = None
