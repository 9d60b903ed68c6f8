"""Counting the work of a piece of code exactly, by watching every tensor operation.

The counts belong to the code and its shapes, not to the machine, and are the same in
every run. What they leave out: caches (each operation pays for all it touches, as if
nothing were still warm) and arithmetic outside matrix products, whose price is the
bytes it moves. Tensors on the "meta" device are counted too, without computing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from recsys_edu.attention.kernels.forms import only_references
from recsys_edu.cost.clocks import Cost
from recsys_edu.cost.memory import storage_key

aten = torch.ops.aten

_FORMULAS = {
    **flop_registry,
    # PyTorch's registry has matrix times matrix, but not times vector ...
    aten.mv: lambda a, x, **_: 2 * a.numel(),
    aten.addmv: lambda y, a, x, **_: 2 * a.numel(),
    aten.dot: lambda a, b, **_: 2 * a.numel(),
    aten.vdot: lambda a, b, **_: 2 * a.numel(),
    # ... and fused attention on GPUs, but not on CPUs.
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
}

_WITHOUT_FORMULA = {
    aten.addbmm,
    aten._cdist_forward,
    aten._cudnn_rnn,
    aten.mkldnn_rnn_layer,
    aten._trilinear,
}
"""Operations with matrix products inside that nothing here can count."""

_GATHERS = {aten.embedding, aten.index, aten.index_select, aten.gather, aten.take}
_BAGS = {aten._embedding_bag, aten._embedding_bag_forward_only}
_ALLOCATIONS = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
}
# These take a tensor only for its shape, type and device.
_FILLED_LIKE = {
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
    aten.rand_like,
    aten.randn_like,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
}
_OVERWRITES = {aten.copy_, aten.fill_, aten.zero_}


def count(fn: Callable[..., object], *args: Any, **kwargs: Any) -> Cost:
    """Run `fn(*args, **kwargs)` once and count its FLOPs and the bytes it moves.

    FLOPs: 2 x multiply-adds of matrix products, convolutions and attention. A product
    [m, k] @ [k, n] is 2 m k n. Masked entries are multiplied too, so they count.

    Bytes: for each operation that PyTorch dispatches, the bytes of the tensors it reads
    plus those it writes.
    - Views (reshape, transpose, expand, a slice) and bare allocations move nothing.
    - An expanded tensor is read once, not once per repetition.
    - A look-up (embedding, x[index], gather) reads the rows it gathers and the
      indices, not the table; an embedding bag writes the pooled rows only.
    - An in-place operation reads and writes the whole tensor it is called on, unless
      it overwrites it (copy_, zero_, out=...), which is one write.

    `scaled_dot_product_attention` is counted in its plain form, which writes the
    scores [N, M] to memory and reads them back. Choose a backend inside `fn` to
    count another form. So are this package's kernels: what a Triton kernel does is
    seen by no counter.

    If `fn` calls `backward()`, that work is counted too.
    Raises ValueError for an operation whose matrix products cannot be counted.
    """
    counter = _Counter()
    with (
        sdpa_kernel(SDPBackend.MATH),
        _plain_attention_modules(),
        only_references(),
        counter,
    ):
        fn(*args, **kwargs)
    return counter.cost


class _Counter(TorchDispatchMode):
    """Adds up the cost of every operation that reaches the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op = func.overloadpacket
        if op in _WITHOUT_FORMULA:
            raise ValueError(
                f"no FLOP formula for {op}: write it with matmul or einsum"
            )
        if op not in _FORMULAS:
            # Under inference_mode, composite operations arrive whole: take them apart
            # with PyTorch's own kernel, as it does everywhere else.
            key = torch._C.DispatchKey.CompositeImplicitAutograd
            if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
                with self:
                    return func._op_dk(key, *args, **kwargs)
        out = func(*args, **kwargs)
        flops = 0
        if op in _FORMULAS:
            flops = _FORMULAS[op](*args, **kwargs, out_val=out)
        self.cost += Cost(flops, _bytes_moved(func, args, kwargs, out))
        return out


def _bytes_moved(func: Any, args: tuple, kwargs: dict, out: object) -> int:
    """Bytes that one dispatched operation reads and writes; 0 for a view."""
    op = func.overloadpacket
    inputs = _tensors((args, kwargs))
    outputs = _tensors(out)
    if op in _BAGS:
        table, indices, *_ = args
        gathered = indices.numel() * table.shape[1] * table.itemsize
        return gathered + _touched(inputs[1:]) + _touched(outputs[:1])
    if op in _GATHERS:
        return _touched(outputs) + _touched(inputs[1:]) + _touched(outputs)
    if op in _ALLOCATIONS or torch.Tag.inplace_view in func.tags:
        return 0
    if op in _FILLED_LIKE:
        return _touched(outputs)

    owned = {storage_key(tensor) for tensor in inputs}
    fresh = [tensor for tensor in outputs if storage_key(tensor) not in owned]
    mutated = _tensors(_mutated(func, args, kwargs))
    if outputs and not fresh and not mutated:
        return 0
    if _overwrites(func):
        identities = {id(tensor) for tensor in mutated}
        inputs = [tensor for tensor in inputs if id(tensor) not in identities]
    return _touched(inputs) + _touched(mutated) + _touched(fresh)


def _mutated(func: Any, args: tuple, kwargs: dict) -> list[object]:
    """The arguments that the operation's schema marks as written to."""
    names = [a.name for a in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return [
        given[a.name]
        for a in func._schema.arguments
        if a.alias_info is not None and a.alias_info.is_write and a.name in given
    ]


def _overwrites(func: Any) -> bool:
    """Whether what the operation writes to is not read: copies, fills, out=, random."""
    return (
        func.overloadpacket in _OVERWRITES
        or any(argument.is_out for argument in func._schema.arguments)
        or torch.Tag.nondeterministic_seeded in func.tags
    )


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _touched(tensors: list[torch.Tensor]) -> int:
    """Distinct bytes under `tensors`; one that is given twice (x * x) counts once."""
    distinct = {
        (storage_key(t), t.storage_offset(), t.shape, t.stride()): t for t in tensors
    }
    return sum(_distinct_elements(t) * t.itemsize for t in distinct.values())


def _distinct_elements(tensor: torch.Tensor) -> int:
    if tensor.numel() == 0:
        return 0
    steps = [
        (size, stride)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if stride != 0  # stride 0 repeats the same elements
    ]
    # Sliding windows overlap: they cannot touch more than the span they lie in.
    span = 1 + sum((size - 1) * stride for size, stride in steps)
    return min(prod(size for size, _ in steps), span)


@contextmanager
def _plain_attention_modules() -> Iterator[None]:
    """Keep `nn.MultiheadAttention` and its kin from their fused, opaque fast path."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
