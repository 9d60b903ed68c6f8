"""Checkpoints of training: all that the next epoch depends on, in one file.

One safetensors file: tensors, and JSON in its header. Nothing in it is executed when it
is read. It says which run it is of, so that another run does not go on from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recsys_edu.artefact import differences
from recsys_edu.files import written_whole

FORMAT = "recsys_edu training, version 1"


def save(
    path: str | Path, tensors: Mapping[str, Tensor], facts: dict, run: dict
) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
        tensors: by name.
        facts: whatever else the run goes on from, as JSON knows it.
        run: what makes it this run and no other, as JSON knows it.
    """
    # Copies: safetensors refuses names that share memory, as tied weights do.
    copies = {name: t.detach().contiguous().clone() for name, t in tensors.items()}
    texts = {"format": FORMAT, "facts": json.dumps(facts), "run": json.dumps(run)}
    with written_whole(path) as partial_file:
        save_file(copies, partial_file, texts)


def load(
    path: str | Path, run: dict, may_grow: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the facts that :func:`save` was given for this run.

    Args:
        may_grow: entries of ``run`` that may be larger here than in the file.

    Raises:
        ValueError: the file is of another run, of another kind or damaged; says what
            differs and what to do.
    """
    mend = f"Move {path} away to train from the start"
    try:
        with safe_open(path, "pt") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no whole safetensors file: {error}. {mend}."
        ) from None
    if texts.get("format") != FORMAT:
        raise ValueError(
            f"{path} holds {texts.get('format', 'something else')!r}, this is "
            f"{FORMAT!r}. {mend}."
        )
    there = json.loads(texts["run"])
    there |= {name: max(there[name], run[name]) for name in may_grow}
    # Through JSON, which knows no tuples.
    if different := differences(json.loads(json.dumps(run)), there):
        shown = "; ".join(different[:6]) + (" ..." if len(different) > 6 else "")
        raise ValueError(
            f"{path} is the checkpoint of another run: {shown}. {mend}, or go on with "
            "what it was begun with."
        )
    return tensors, json.loads(texts["facts"])


def fingerprint(*arrays: np.ndarray) -> str:
    """A short hash of what arrays hold, their types and their shapes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def described(value: Any) -> Any:
    """What JSON can tell of an argument: numbers, the names of functions and types.

    A ``partial`` is its function and its arguments. Two objects of one type look alike.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, partial):
        arguments = {k: described(v) for k, v in value.keywords.items()}
        positional = [described(argument) for argument in value.args]
        return {"function": described(value.func), "args": positional} | arguments
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
