"""What ``experiments.gpu`` measures: pieces of work, each in several forms.

Random weights and inputs, as shapes matter here and content does not; d = 64 in two
heads, two layers or blocks, r = 32, as in :mod:`recsys_edu.experiments.latency`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from recsys_edu.attention import kernels
from recsys_edu.attention.heads import split_heads
from recsys_edu.attention.kernels import (
    candidate_attention,
    fuse_links,
    xor_attend,
)
from recsys_edu.batch import Request, random_request
from recsys_edu.cost import Cost, count, nbytes
from recsys_edu.cost.kernels import fuse_links_cost, pointwise_cost, xor_attend_cost
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.lime import LimeXOR
from recsys_edu.experiments.latency import ENCODERS, LAYERS, D, R, world
from recsys_edu.scoring.link_index import LinkIndex
from recsys_edu.scoring.strategies import amortized, links, naive
from recsys_edu.tree import TensorTree

HEADS, DH = 2, D // 2
ROUNDINGS = 64  # in float32, on the longest path from an input to a result
SAMPLES = 64  # results, evenly spaced, that are held against the truth


def compiled(run: Callable) -> Callable:
    """``run`` compiled for each size by itself."""
    return torch.compile(run, dynamic=False)


@dataclass(frozen=True)
class Plan:
    """Which sizes are measured, how often, and how long it may take in all."""

    xor: Sequence[int] = (16_384, 4096, 1024)  # N; the largest first, if time is short
    batch: int = 64  # requests that XOR attention reads at once
    links: Sequence[int] = (2**20, 2**17, 2**14)  # M
    catalogue: int = 2**23  # rows of the index that these are gathered from
    requests: Sequence[tuple[int, int]] = ((1024, 32_768), (16_384, 512))  # N, M
    naive: tuple[int, int] = (256, 512)
    small: tuple[int, int] = (64, 64)
    candidates: Sequence[tuple[int, int]] = tuple(
        (n, m) for n in (1024, 16_384) for m in (512, 4096, 32_768)
    )
    m: int = 4096  # that is measured in float32 too
    items: int = 10**6  # of the catalogue that whole requests are ranked from
    micro_batches: Sequence[int] = (2048, 32_768)  # of HSTU: which is faster is seen
    rounds: int = 15
    min_seconds: float = 1e-3  # of a sample
    roof_seconds: float = 2.0
    seconds: float = 450.0  # after which the pieces that are left are skipped
    compile: Callable = compiled


TINY = Plan(
    xor=(6,),
    batch=1,
    links=(5,),
    catalogue=7,
    requests=((5, 6),),
    naive=(4, 3),
    small=(3, 2),
    candidates=((6, 5),),
    m=5,
    items=40,
    micro_batches=(4,),
    rounds=1,
    min_seconds=0.0,
    roof_seconds=0.01,
    compile=partial(torch.compile, backend="eager"),
)
"""A dry run: every line, at sizes that say nothing, in seconds on a CPU."""


@dataclass(frozen=True)
class Truth:
    """What a form's results must be, at the places where they are looked at."""

    sample: Callable[[Any], tuple[Tensor, ...]]  # of what the form returns
    exact: tuple[Tensor, ...]  # the same, in float64
    allowed: tuple[float, ...]  # largest error of each

    @classmethod
    def between(
        cls,
        sample: Callable[[Any], tuple[Tensor, ...]],
        reference: Sequence[Tensor],
        exact: Sequence[Tensor],
        size: float = 0.0,
    ) -> Truth:
        """Allows twice the error of the reference, and some roundings.

        Roundings of the largest number: those of sums, which all forms take in float32,
        and the last, to the type.

        Args:
            size: of the numbers on the way, where those of the result are smaller.
        """
        allowed = []
        for plain, true in zip(reference, exact, strict=True):
            unit = ROUNDINGS * 2**-24 + torch.finfo(plain.dtype).eps / 2
            error = (plain - true).abs().max()
            allowed.append(float(2 * error + unit * true.abs().max().clamp(min=size)))
        return cls(sample, tuple(exact), tuple(allowed))

    def miss(self, results: Any) -> tuple[float, float]:
        """The error and what is allowed of the result that misses its budget most."""
        pairs = []
        for got, true, allowed in zip(
            self.sample(results), self.exact, self.allowed, strict=True
        ):
            if got.shape != true.shape:
                raise RuntimeError(f"a result is {got.shape}, not {true.shape}")
            pairs.append((float((got - true).abs().max()), allowed))
        return max(pairs, key=lambda pair: (not pair[0] <= pair[1], pair[0] - pair[1]))


@dataclass(frozen=True)
class Form:
    """One way to compute a piece of work."""

    run: Callable[..., Any]  # of one of the piece's inputs
    truth: Truth
    cost: Cost  # what the work takes
    obstacle: str = ""  # why it cannot run here, if that is known beforehand


@dataclass(frozen=True)
class Piece:
    """A piece of work: forms that are timed in turns. The first is plain PyTorch."""

    forms: dict[str, Form]
    dtype: torch.dtype
    inputs: Sequence[tuple] = ((),)  # they take turns


def device() -> torch.device:
    """Where the work is done."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def low_type() -> torch.dtype:
    """bfloat16, or float16 where a GPU would only imitate bfloat16."""
    gpu = torch.cuda.is_available()
    lacks = gpu and torch.cuda.get_device_capability() < (8, 0)
    return torch.float16 if lacks else torch.bfloat16


def short(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def pieces(plan: Plan) -> Iterator[tuple[dict, Callable[[], Piece]]]:
    """Every piece, by what its rows say of it and how it is made; first what counts."""
    types = torch.float32, low_type()
    for n in plan.xor:
        for dtype in types:
            for way, make in (("forward", xor_forward), ("training", xor_training)):
                where = {"part": "xor", "pass": way, "N": n, "dtype": short(dtype)}
                yield where | {"B": plan.batch, "r": R}, partial(make, plan, n, dtype)
    for m in plan.links:
        for table in (torch.float32, torch.float16, torch.int8):
            where = {"part": "links", "M": m, "index": short(table), "r": R, "d": D}
            yield where, partial(link_scoring, plan, m, table)
    n, m = plan.small
    where = {"part": "small request", "N": n, "M": m, "dtype": "float32"}
    for name in ("HSTU", "LIME-XOR"):
        yield where | {"model": name}, partial(small_request, plan, name)
    n, m = plan.naive
    where = {"part": "naive", "N": n, "M": m, "dtype": "float32"}
    for name in ("append-cross, causal", "HSTU"):
        yield where | {"model": name}, partial(against_naive, plan, name)
    for n, m in plan.requests:
        where = {"part": "requests", "N": n, "M": m, "dtype": "float32"}
        yield where, partial(whole_requests, plan, n, m)
        yield where | {"part": "copy of a cache"}, partial(cache_copies, plan, n)
        yield where | {"part": "copy of rows"}, partial(row_copies, plan, m)
    sizes = [(low_type(), *size) for size in plan.candidates]
    sizes += [(torch.float32, *size) for size in plan.candidates if size[1] == plan.m]
    for dtype, n, m in sizes:
        for kind, make in (("softmax", softmax), ("pointwise", pointwise)):
            where = {"part": "candidates", "kind": kind, "N": n, "M": m}
            yield where | {"dtype": short(dtype)}, partial(make, plan, n, m, dtype)


# --- kernels --------------------------------------------------------------------------


def tokens(batch: int, n: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Queries, keys and values [batch, HEADS, n, DH], parts of one projection."""
    x = torch.randn(batch, n, 3 * D, device=device()).to(dtype)
    return tuple(split_heads(part, HEADS) for part in x.chunk(3, dim=-1))


def enough(make: Callable[[], tuple]) -> list[tuple]:
    """Inputs that are together twice as large as the last cache, sixteen at most."""
    first = make()
    if not torch.cuda.is_available():
        return [first]
    cache = torch.cuda.get_device_properties(device()).L2_cache_size
    return [first, *(make() for _ in range(min(15, 2 * cache // nbytes(first))))]


def in_three_forms(plan: Plan, run: Callable) -> dict[str, Callable]:
    """A function with a kernel behind it: plain, compiled, and by the kernel."""
    return {
        "eager": partial(run, form="reference"),
        "compile": plan.compile(lambda *tensors: run(*tensors, form="reference")),
        "triton": partial(run, form="triton"),
    }


def _xor_inputs(plan: Plan, n: int, dtype: torch.dtype) -> tuple:
    mask = torch.rand(plan.batch, n, device=device()) < 0.9
    return *tokens(plan.batch, R, dtype), *tokens(plan.batch, n, dtype), mask


def _xor(*tensors: Tensor, form: str) -> tuple[Tensor, Tensor]:
    return xor_attend(tensors[:3], tensors[3:6], tensors[6], form=form)


def _few_requests(results: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(result[:2] for result in results)


def xor_forward(plan: Plan, n: int, dtype: torch.dtype) -> Piece:
    """Links and events read each other; the first two requests are checked."""
    inputs = enough(lambda: _xor_inputs(plan, n, dtype))
    eager = partial(_xor, form="reference")
    few = _few_requests(inputs[0])
    exact = eager(*(x.double() if x.is_floating_point() else x for x in few))
    truth = Truth.between(_few_requests, eager(*few), exact)
    cost = xor_attend_cost(plan.batch, HEADS, n, R, DH, dtype.itemsize)
    runs = in_three_forms(plan, _xor)
    forms = {name: Form(run, truth, cost) for name, run in runs.items()}
    return Piece(forms, dtype, inputs)


def xor_training(plan: Plan, n: int, dtype: torch.dtype) -> Piece:
    """The same, and the gradients of queries, keys and values."""

    def make() -> tuple:
        *given, mask = _xor_inputs(plan, n, dtype)
        grads = [torch.randn_like(x) for x in _xor(*given, mask, form="reference")]
        return *(x.requires_grad_() for x in given), mask, *grads

    def step(run: Callable, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            read = run(*tensors[:7])
        return torch.autograd.grad(read, tensors[:6], tensors[7:])

    inputs = enough(make)
    few = [x.detach() for x in _few_requests(inputs[0])]
    few = [x.requires_grad_() if x.is_floating_point() else x for x in few]
    double = [x.detach().double() if x.is_floating_point() else x for x in few]
    double = [x.requires_grad_() if x.is_floating_point() else x for x in double]
    eager = partial(_xor, form="reference")
    truth = Truth.between(_few_requests, step(eager, *few), step(eager, *double))
    shape = plan.batch, HEADS, n, R, DH, dtype.itemsize
    cost = xor_attend_cost(*shape) + xor_attend_cost(*shape, backward=True)
    runs = in_three_forms(plan, _xor)
    forms = {name: Form(partial(step, run), truth, cost) for name, run in runs.items()}
    return Piece(forms, dtype, inputs)


def evenly(m: int) -> Tensor:
    """Places of at most SAMPLES of m results, the last among them."""
    return torch.linspace(0, m - 1, min(m, SAMPLES), device=device()).round().long()


def link_scoring(plan: Plan, m: int, table: torch.dtype) -> Piece:
    """A row of the index for each of M items, times the links: B = 1."""
    dtype = torch.float32 if table == torch.float32 else torch.float16
    if table == torch.int8:
        shape = plan.catalogue, R
        weights = torch.randint(-127, 128, shape, dtype=table, device=device())
        scale = torch.rand(plan.catalogue, device=device()) / 127
    else:
        weights = torch.rand(plan.catalogue, R, device=device()).to(table)
        scale = None

    def make() -> tuple:
        items = torch.randint(plan.catalogue, (1, m), device=device())
        return items, torch.randn(1, R, D, device=device()).to(dtype)

    def run(items: Tensor, links: Tensor, form: str) -> Tensor:
        return fuse_links(weights, items, links, scale=scale, form=form)

    some = evenly(m)
    inputs = enough(make)
    items, vectors = inputs[0][0][:, some], inputs[0][1]
    rows = weights[items].double()
    if scale is not None:
        rows = rows * scale[items].double().unsqueeze(-1)
    truth = Truth.between(
        lambda out: (out[:, some],),
        [run(items, vectors, "reference")],
        [rows @ vectors.double()],
    )
    cost = fuse_links_cost(1, m, R, D, table, dtype)
    runs = in_three_forms(plan, run)
    forms = {name: Form(run, truth, cost) for name, run in runs.items()}
    return Piece(forms, dtype, inputs)


def _attention(
    m: int,
    n: int,
    dtype: torch.dtype,
    cost: Cost,
    forms: dict[str, Callable[..., Tensor]],
    *rest: Tensor,
) -> Piece:
    """M candidates over N keys, B = 1: the first form is also the reference."""

    def make() -> tuple:
        mask = torch.ones(1, n, dtype=torch.bool, device=device())
        (q, _, _), (_, k, v) = tokens(1, m, dtype), tokens(1, n, dtype)
        return q, k, v, mask, *rest

    some, inputs = evenly(m), enough(make)
    eager = next(iter(forms.values()))
    q, *others = inputs[0]
    few = q[:, :, some], *others
    exact = eager(*(x.double() if x.is_floating_point() else x for x in few))
    truth = Truth.between(lambda read: (read[:, :, some],), [eager(*few)], [exact])
    made = {name: Form(run, truth, cost) for name, run in forms.items()}
    return Piece(made, dtype, inputs)


def _backend(name: str) -> Callable[..., Tensor]:
    """One of PyTorch's, without a mask, as flash attention takes none."""

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, name)):
            return F.scaled_dot_product_attention(q, k, v)

    return run


def softmax(plan: Plan, n: int, m: int, dtype: torch.dtype) -> Piece:
    """Append-cross: PyTorch's backends, and FlexAttention."""
    kernel = partial(candidate_attention, kind="softmax")
    forms = {
        "eager": partial(kernel, form="reference"),
        "sdpa, with a mask": partial(kernel, form="sdpa"),
        "flash": _backend("FLASH_ATTENTION"),
        "efficient": _backend("EFFICIENT_ATTENTION"),
        "cudnn": _backend("CUDNN_ATTENTION"),
        "math": _backend("MATH"),
        "flex": partial(kernel, form="flex"),
    }
    tensors = 2 * HEADS * DH * (m + n) * dtype.itemsize  # q and what is read, k and v
    cost = Cost(4 * HEADS * m * n * DH, tensors + n)
    return _attention(m, n, dtype, cost, forms)


def pointwise(plan: Plan, n: int, m: int, dtype: torch.dtype) -> Piece:
    """HSTU: plain, compiled, and the Triton kernel."""
    count = torch.full((1,), n, device=device())
    bias = torch.randn(1, HEADS, 1, n, device=device()).to(dtype)

    def run(*tensors: Tensor, form: str) -> Tensor:
        *given, n, bias = tensors
        return candidate_attention(*given, kind="pointwise", n=n, bias=bias, form=form)

    forms = in_three_forms(plan, run)
    cost = pointwise_cost(1, HEADS, m, n, DH, dtype.itemsize, bias=HEADS * n)
    return _attention(m, n, dtype, cost, forms, count, bias)


# --- whole requests -------------------------------------------------------------------


@cache
def ranker(name: str, items: int) -> DLRM:
    """A ranker of that world with random weights; "LIME-XOR, fused" shares the other's.

    Its encoder runs the blocks before the last in the fused form.
    """
    fused = partial(LimeXOR, D, r=R, layers=LAYERS, form="fused")
    log, made = world(items), ENCODERS | {"LIME-XOR, fused": fused}
    torch.manual_seed(0)
    embeddings = Embeddings(log.users, log.items, log.events, D)
    return DLRM(embeddings, made[name]()).eval().to(device())


@cache
def index(items: int) -> LinkIndex:
    """The link index of LIME-XOR, on the CPU."""
    return LinkIndex.build(ranker("LIME-XOR", items))


def on_card(plan: Plan, request: Request, form: kernels.Form) -> Callable[[], Tensor]:
    """LIME-XOR with the index on the card, by plain PyTorch or as it is served there.

    That is by the kernels: look-up and sum are one, and so is XOR attention.
    """
    on_the_card, items = index(plan.items).to(device()), request.candidates
    if form == "triton":
        model = ranker("LIME-XOR, fused", plan.items)
        return partial(links, model, request, on_the_card, micro_batch=items.shape[1])
    model = ranker("LIME-XOR", plan.items)

    def run() -> Tensor:
        known = model.encode_request(request)
        return model.fuse(model.encode_items(items, on_the_card[items]), known)

    return run


def request_of(plan: Plan, n: int, m: int) -> Request:
    """A random request of the plan's world, on the card."""
    return random_request(world(plan.items), n, m, seed=0).to(device())


def truth_of(plan: Plan, name: str, request: Request) -> Truth:
    """The scores of eight candidates, one full pass each, in float32 and float64.

    Scores start near zero, where what they are sums of cancels: those are near one.
    """
    some = evenly(request.candidates.shape[1]).flip(0)[:: SAMPLES // 8]  # from the last
    few = replace(request, candidates=request.candidates[:, some])
    model = ranker(name, plan.items)
    exact = naive(copy.deepcopy(model).double(), few)
    return Truth.between(
        lambda scores: (scores[:, some],), [naive(model, few)], [exact], size=1.0
    )


def whole_requests(plan: Plan, n: int, m: int) -> Piece:
    """HSTU by M-FALCON, and LIME-XOR with its index in different places."""
    request = request_of(plan, n, m)
    hstu, lime = ranker("HSTU", plan.items), ranker("LIME-XOR", plan.items)
    truths = {name: truth_of(plan, name, request) for name in ("HSTU", "LIME-XOR")}
    runs = {
        f"HSTU, b = {min(size, m)}": partial(
            amortized, hstu, request, micro_batch=min(size, m)
        )
        for size in plan.micro_batches
    }
    cpu = partial(links, lime, request, index(plan.items), micro_batch=m)
    runs["LIME-XOR, index on the CPU"] = cpu
    runs["LIME-XOR, index on the card"] = on_card(plan, request, "reference")
    costs = {name: count(run) for name, run in runs.items()}
    runs["LIME-XOR, Triton"] = on_card(plan, request, "triton")
    costs["LIME-XOR, Triton"] = costs["LIME-XOR, index on the card"]
    return Piece(
        {
            name: Form(run, truths[name.partition(",")[0]], costs[name])
            for name, run in runs.items()
        },
        torch.float32,
    )


def against_naive(plan: Plan, name: str) -> Piece:
    """A pass for each candidate against M-FALCON."""
    n, m = plan.naive
    model, request = ranker(name, plan.items), request_of(plan, n, m)
    truth = truth_of(plan, name, request)
    first = replace(request, candidates=request.candidates[:, :1])
    one_by_one = partial(naive, model, request)
    together = partial(amortized, model, request, micro_batch=m)
    forms = {  # all passes cost the same: count one
        "naive": Form(one_by_one, truth, m * count(naive, model, first)),
        "amortized": Form(together, truth, count(together)),
    }
    return Piece(forms, torch.float32)


class Graphed:
    """A function without arguments as one CUDA graph, captured when it is first called.

    Results are written to where the capture wrote them: read them before the next call.
    """

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self.run = run
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> Tensor:
        if self.graph is None:
            self._capture()
        self.graph.replay()
        return self.out

    def _capture(self) -> None:
        stream = torch.cuda.Stream()  # a capture wants warm code, off the main stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.out = self.run()
        self.graph = graph  # last: a capture that failed leaves none


def small_request(plan: Plan, name: str) -> Piece:
    """A request whose work is too little to fill the card: what do launches cost?"""
    n, m = plan.small
    request = request_of(plan, n, m)
    if name == "LIME-XOR":
        eager = on_card(plan, request, "reference")
    else:
        eager = partial(amortized, ranker(name, plan.items), request, micro_batch=m)
    compiled = plan.compile(lambda: eager())
    truth, cost = truth_of(plan, name, request), count(eager)
    no_graph = "" if torch.cuda.is_available() else "CUDA graphs are a GPU's"
    return Piece(
        {
            "eager": Form(eager, truth, cost),
            "compile": Form(compiled, truth, cost),
            "graph": Form(Graphed(eager), truth, cost, no_graph),
            "compile, graph": Form(Graphed(compiled), truth, cost, no_graph),
        },
        torch.float32,
    )


# --- copies ---------------------------------------------------------------------------


def pinned(tensor: Tensor) -> Tensor:
    """A copy in memory that the card may read by itself; the tensor without a GPU."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


NOT_PINNED = "" if torch.cuda.is_available() else "memory is pinned for a GPU"


def cache_copies(plan: Plan, n: int) -> Piece:
    """What HSTU keeps of a history: made again, or brought from the CPU."""
    model, request = ranker("HSTU", plan.items), request_of(plan, n, 1)

    def recompute(model: DLRM = model) -> TensorTree:
        return model.encode_request(request).code

    def keys_values(code: TensorTree) -> tuple[Tensor, ...]:
        return code.k, code.v

    code = recompute()
    exact = keys_values(recompute(copy.deepcopy(model).double()))
    truth = Truth.between(keys_values, keys_values(code), exact)
    kept, moved = code.to("cpu"), Cost(0, nbytes(code))
    waiting = kept.map(pinned)
    return Piece(
        {
            "recompute": Form(recompute, truth, count(recompute)),
            "copy": Form(lambda: kept.to(device()), truth, moved),
            "copy, pinned": Form(
                lambda: waiting.map(to_card), truth, moved, NOT_PINNED
            ),
        },
        torch.float32,
    )


def row_copies(plan: Plan, m: int) -> Piece:
    """M rows of a link index on the card: gathered there, or brought from the CPU."""
    table = index(plan.items).weights
    items = request_of(plan, 1, m).candidates[0]
    on_cpu, on_the_card = items.cpu(), table.to(device())
    rows = table[on_cpu].to(device())
    waiting = pinned(torch.empty(m, R))
    truth = Truth.between(lambda rows: (rows,), [rows], [rows.double()])

    def through_pinned() -> Tensor:
        torch.index_select(table, 0, on_cpu, out=waiting)
        return to_card(waiting)

    moved = Cost(0, nbytes(rows))
    return Piece(
        {
            "gather on the card": Form(lambda: on_the_card[items], truth, moved),
            "gather, copy": Form(lambda: table[on_cpu].to(device()), truth, moved),
            "gather, copy, pinned": Form(through_pinned, truth, moved, NOT_PINNED),
        },
        torch.float32,
    )


def to_card(tensor: Tensor) -> Tensor:
    """A copy on the card; from pinned memory, without the CPU's waiting for it."""
    return tensor.to(device(), non_blocking=True)
