"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to, and renames it when that went well.

    A reader finds the old file or the new one, also after a kill, and after a power cut
    too: what was written is on the disk before it gets its name. Each writer has a path
    of its own, so of two at once the later wins, whole. What failed is removed.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
