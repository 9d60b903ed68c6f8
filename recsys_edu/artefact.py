"""A ranker as an artefact: saved whole, loaded with no log at hand, refused by name.

One safetensors file, with no pickle in it::

    metadata   "ranker": JSON, see :func:`describe`
    tensors    weights.*             every parameter and buffer
               coding.SIDE.NAME      the categories of a sparse feature
               values.SIDE.*         ids, and a row of codes for each user or item

SIDE is users or items; text is kept as UTF-8 and where each string ends. The JSON says
how to make the ranker anew (classes, their arguments, widths, type) and under which
codes its weights mean something (scales, hashes of the categories, actions).
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recsys_edu.data.coding import Categories, Coding, EventCoding, Scale
from recsys_edu.data.features import Features
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.base import HistoryEncoder
from recsys_edu.files import written_whole
from recsys_edu.positions import Positions

FORMAT = 1
"""Of the file. Another number is another format; files before 1 have none."""

SIDES = ("users", "items")


def save_ranker(ranker: DLRM, path: str | Path) -> None:
    """Writes a ranker, its coding and its values, whole or not at all.

    Raises:
        ValueError: an argument of its encoder or positions that JSON cannot hold, or
            weights of several types.

    Example:
        >>> import tempfile
        >>> from recsys_edu.data.synthetic import planted_world
        >>> from recsys_edu.encoders.append import AppendEncoder
        >>> log = planted_world(seed=0, n_impressions=100, n_users=9, n_items=9).log
        >>> embeddings = Embeddings(log.users, log.items, log.events, 8)
        >>> ranker = DLRM(embeddings, AppendEncoder(8, layers=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_ranker(ranker, f"{folder}/ranker.safetensors")
        ...     again = load_ranker(f"{folder}/ranker.safetensors")
        >>> again.encoder.config
        {'d': 8, 'causal': True, 'reads_itself': False, 'layers': 1, 'heads': 2, \
'dropout': 0.1}
    """
    tensors = {f"weights.{name}": t for name, t in ranker.state_dict().items()}
    for side in SIDES:
        values = getattr(ranker.embeddings, side).values
        features = values.features()
        for name, column in values.coding.sparse.items():
            tensors |= _packed(f"coding.{side}.{name}", column.values)
        tensors |= _packed(f"values.{side}.ids", features.ids)
        tensors[f"values.{side}.dense"] = torch.from_numpy(features.dense)
        for name, codes in features.sparse.items():
            tensors[f"values.{side}.codes.{name}"] = torch.from_numpy(codes)
    tensors = {k: t.detach().cpu().contiguous() for k, t in tensors.items()}
    with written_whole(path) as partial:
        save_file(tensors, partial, {"ranker": json.dumps(describe(ranker))})


def load_ranker(path: str | Path) -> DLRM:
    """The ranker that :func:`save_ranker` wrote, in eval mode, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no ranker, is damaged, or of another format; or its
            encoder's class is not known here. Says what to do.
    """
    about, tensors = _read(path)
    sides = {side: _features(about, tensors, side) for side in SIDES}
    events = about["events"]
    if events is not None:
        actions = tuple(events["actions"])
        events = EventCoding(actions, events["first"], events["last"])
    embeddings = Embeddings(
        sides["users"],
        sides["items"],
        events,
        about["width"],
        positions=_made(about["positions"], Positions),
    )
    encoder = _made(about["encoder"], HistoryEncoder)
    ranker = DLRM(embeddings, encoder, hidden=about["hidden"])
    ranker.to(getattr(torch, about["type"]))
    ranker.load_state_dict(_weights(tensors))
    return ranker.eval()


def load_weights(ranker: DLRM, path: str | Path) -> None:
    """Reads the weights of a saved ranker into one that is the same but for weights.

    Its values, which may have grown meanwhile, stay.

    Raises:
        ValueError: the file's ranker is another one: names what differs, as "encoder
            argument causal". Nothing is loaded then. Or as :func:`load_ranker`.
    """
    about, tensors = _read(path)
    if different := differences(describe(ranker), about):
        raise ValueError(
            f"{path} holds another ranker than this one: {'; '.join(different)}. "
            "load_ranker() makes the one in the file"
        )
    ranker.load_state_dict(_weights(tensors))


def describe(ranker: DLRM) -> dict[str, Any]:
    """All that a ranker is but its weights and values, in what JSON can hold.

    Raises:
        ValueError: as :func:`save_ranker`.
    """
    embeddings = ranker.embeddings
    types = {p.dtype for p in ranker.parameters()}
    if len(types) != 1:
        names = sorted(str(t) for t in types)
        raise ValueError(f"weights of several types, {names}: make them one with .to()")
    coding = embeddings.coding
    return {
        "format": FORMAT,
        "type": str(types.pop()).removeprefix("torch."),
        "width": embeddings.d,
        "hidden": list(ranker.hidden),
        "encoder": _described(ranker.encoder),
        "positions": _described(embeddings.positions),
        **{side: _coding(getattr(embeddings, side).values.coding) for side in SIDES},
        "events": coding
        and {
            "actions": [_json_value(a) for a in coding.actions],
            "first": coding.first,
            "last": coding.last,
        },
    }


def differences(this: Any, file: Any, where: str = "") -> list[str]:
    """What differs between two descriptions, each in a few words: none if equal."""
    if this == file:
        return []
    if isinstance(this, dict) and isinstance(file, dict):
        keys = dict.fromkeys([*this, *file])
        return [
            text
            for key in keys
            for text in differences(this.get(key), file.get(key), f"{where} {key}")
        ]
    return [f"{where.strip()} is {_short(this)} here and {_short(file)} in the file"]


def _short(value: Any) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _described(part: Any) -> dict[str, Any] | None:
    if part is None:
        return None
    kind = type(part)
    for name, value in part.config.items():
        if not isinstance(value, int | float | str | bool | None):
            raise ValueError(
                f"{kind.__name__}({name}={value!r}) cannot be saved: an argument must "
                "be a number, a text, a truth value or None"
            )
    name = f"{kind.__module__}.{kind.__qualname__}"
    return {"class": name, "argument": part.config}


def _made(about: dict[str, Any] | None, base: type) -> Any:
    """The encoder or the positions of a description."""
    if about is None:
        return None
    wanted = about["class"]
    if wanted.startswith("recsys_edu."):  # a file says no other module to import
        importlib.import_module(wanted.rpartition(".")[0])
    waiting = [base]
    while waiting:
        kind = waiting.pop()
        if f"{kind.__module__}.{kind.__qualname__}" == wanted:
            return kind(**about["argument"])
        waiting += kind.__subclasses__()
    raise ValueError(
        f"the file's {base.__name__} is a {wanted}, which is not known here: import "
        "the module that defines it first"
    )


def _coding(coding: Coding) -> dict[str, Any]:
    return {
        "dense": {k: [s.mean, s.deviation] for k, s in coding.dense.items()},
        "sparse": {
            name: {"width": column.width, "categories": _hash(column.values)}
            for name, column in coding.sparse.items()
        },
    }


def _hash(values: np.ndarray) -> str:
    """How many, and 16 hex digits of what they are."""
    text = "\0".join(map(str, values.tolist()))
    digest = hashlib.sha256(f"{values.dtype.kind}\0{text}".encode()).hexdigest()
    return f"{len(values)} ({digest[:16]})"


def _json_value(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _packed(name: str, values: np.ndarray) -> dict[str, Tensor]:
    """An array as tensors: text as the bytes of all, and where each ends."""
    if values.dtype.kind != "U":
        return {name: torch.from_numpy(np.ascontiguousarray(values))}
    texts = [text.encode() for text in values.tolist()]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    joined = np.frombuffer(b"".join(texts), np.uint8).copy()
    return {
        f"{name}#text": torch.from_numpy(joined),
        f"{name}#ends": torch.tensor(ends),
    }


def _unpacked(name: str, tensors: Mapping[str, Tensor]) -> np.ndarray:
    if name in tensors:
        return tensors[name].numpy()
    joined, ends = (tensors[f"{name}#{part}"].numpy() for part in ("text", "ends"))
    starts = np.concatenate([[0], ends])[:-1]
    joined = joined.tobytes()
    texts = [joined[a:b].decode() for a, b in zip(starts, ends, strict=True)]
    return np.array(texts, dtype=str)


def _features(about: dict, tensors: Mapping[str, Tensor], side: str) -> Features:
    dense = {k: Scale(*numbers) for k, numbers in about[side]["dense"].items()}
    sparse = {
        name: Categories(_unpacked(f"coding.{side}.{name}", tensors), column["width"])
        for name, column in about[side]["sparse"].items()
    }
    coding = Coding(dense, sparse)
    return Features(
        dense=tensors[f"values.{side}.dense"].numpy(),
        dense_names=tuple(dense),
        sparse={n: tensors[f"values.{side}.codes.{n}"].numpy() for n in sparse},
        cardinality=coding.rows,
        ids=_unpacked(f"values.{side}.ids", tensors),
        coding=coding,
    )


def _weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(_below("weights.", tensors))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), tensor


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read: {error}. It is damaged, or no safetensors file"
        ) from error
    if "ranker" not in metadata:
        raise ValueError(
            f"{path} holds tensors and no ranker. If an older version of this package "
            "wrote it: build the ranker from the log as it was trained, put a row of "
            "zeros before the rows of embeddings.actions.weight (the unknown action), "
            "load the tensors with ranker.load_state_dict(), and save_ranker() it"
        )
    about = json.loads(metadata["ranker"])
    if about["format"] != FORMAT:
        raise ValueError(
            f"{path} is of format {about['format']}, and this version of the package "
            f"reads format {FORMAT}: load it with the version that wrote it"
        )
    return about, tensors
