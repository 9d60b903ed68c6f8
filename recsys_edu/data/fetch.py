"""Get a file into the cache: once, whole, and checked.

The cache is a folder per user, or the one named by the environment variable
`RECSYS_EDU_CACHE`. A file stands in it under its own name only after its checksum was
verified; what a killed download leaves is a `.part` beside it, and the next call goes
on from there. With the file in the cache, nothing here touches the network.
"""

import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import requests
from filelock import FileLock

from recsys_edu.progress import progress

with warnings.catch_warnings():
    # pooch imports tqdm's widget, which warns where ipywidgets is missing. Nothing here
    # shows that widget.
    warnings.simplefilter("ignore")
    import pooch

log = logging.getLogger(__name__)


class ChecksumError(OSError):
    """A downloaded file is not the one that was asked for."""


@dataclass(frozen=True)
class Source:
    """One place that a file can be had from.

    Attributes:
        name: the file's name in the cache.
        known_hash: its published checksum, as "sha256:..." or "md5:...".
        origin: an http(s) URL, or a pinned requirement ("name==version") whose wheel
            pip downloads from wherever this machine's pip is set up to look.
        terms: whose data it is and what may be done with it; logged before a download.
    """

    name: str
    known_hash: str
    origin: str
    terms: str


def cache_dir() -> Path:
    """The cache folder: `$RECSYS_EDU_CACHE`, else the user's own cache."""
    return Path(os.environ.get("RECSYS_EDU_CACHE") or pooch.os_cache("recsys_edu"))


def fetch(*sources: Source) -> Path:
    """The cached file of the first of `sources` that is there, or that can be had.

    Two processes that ask at once download once: one holds a lock file, and the other
    waits for it.

    Raises:
        ChecksumError: the only source gave a wrong file.
        OSError: it could not be reached; of several sources, what went wrong at each.
    """
    for source in sources:
        if _is_whole(path := cache_dir() / source.name, source):
            return path
    failures = []
    for source in sources:
        try:
            return _fetch(source)
        except OSError as error:
            if len(sources) == 1:
                raise
            failures.append(f"{source.name} from {source.origin}: {error}")
    raise OSError("no source could be had\n" + "\n".join(failures))


def unpack(archive: Path, names: Sequence[str]) -> Path:
    """A folder beside a tar `archive` that holds its files called `names`.

    A member is found by its file name and written under that name, so no path in the
    archive can point out of the folder. Each file is renamed into place once whole.

    Raises:
        FileNotFoundError: a name that the archive does not hold.
    """
    folder = archive.with_name(f"{archive.name}.d")
    with _lock(folder):
        folder.mkdir(exist_ok=True)
        missing = {name for name in names if not (folder / name).exists()}
        if not missing:
            return folder
        # The archive is one compressed stream: read it once, in its own order.
        with tarfile.open(archive) as tar:
            for member in progress(tar, desc=f"unpack {archive.name}", unit=" files"):
                name = PurePosixPath(member.name).name
                if name in missing and member.isfile():
                    part = folder / f"{name}.part"
                    with open(part, "wb") as out:
                        shutil.copyfileobj(tar.extractfile(member), out)
                    os.replace(part, folder / name)
                    missing.remove(name)
    if missing:
        raise FileNotFoundError(f"{archive} holds no {sorted(missing)}")
    return folder


def _fetch(source: Source) -> Path:
    path = cache_dir() / source.name
    part = path.with_name(f"{path.name}.part")
    with _lock(path):
        # Another process may have finished the file while this one waited.
        if _is_whole(path, source):
            return path
        log.info("fetching %s from %s: %s", source.name, source.origin, source.terms)
        if source.origin.startswith(("http://", "https://")):
            _download(source.origin, part)
        else:
            _download_wheel(source.origin, part)
        if not _is_whole(part, source):
            found = _hash(part, source)
            part.unlink()
            raise ChecksumError(
                f"{path}: {source.origin} gave a file with hash {found}, expected "
                f"{source.known_hash}. It was thrown away. Run again: if the same hash "
                "comes back, a proxy or the source itself has changed the file"
            )
        os.replace(part, path)
    return path


def _lock(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


def _hash(path: Path, source: Source) -> str:
    algorithm = source.known_hash.partition(":")[0]
    return f"{algorithm}:{pooch.file_hash(str(path), alg=algorithm)}"


def _is_whole(path: Path, source: Source) -> bool:
    return path.exists() and _hash(path, source) == source.known_hash


def _download(url: str, part: Path) -> None:
    """Append to `part` what it lacks of `url`; start over if the server cannot."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # the hash is of the bytes as published
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                return  # nothing is missing: the checksum says whether it is right
            answer.raise_for_status()
            resumed = answer.status_code == requests.codes.partial_content
            done = done if resumed else 0
            size = int(answer.headers.get("Content-Length", 0)) + done
            with (
                open(part, "ab" if resumed else "wb") as out,
                progress(
                    desc=part.stem,
                    initial=done,
                    total=size or None,
                    unit="B",
                    unit_scale=True,
                ) as bar,
            ):
                for chunk in answer.iter_content(chunk_size=1 << 20):
                    bar.update(out.write(chunk))
    except requests.RequestException as error:
        raise OSError(
            f"{error}. Run again: the download goes on from {part}"
        ) from error


def _download_wheel(requirement: str, part: Path) -> None:
    """Let pip download the wheel of `requirement`, and put it at `part`."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    options = [
        "--only-binary",
        ":all:",
        "--disable-pip-version-check",
        "--retries",
        "1",
    ]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*pip, *options, "--dest", folder, requirement],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no message"]
            raise OSError(f"pip could not download {requirement}: {said[-1]}")
        [wheel] = Path(folder).glob("*.whl")
        shutil.copyfile(wheel, part)
