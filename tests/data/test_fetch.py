"""Getting files: killed, cut off, corrupted, at once, offline; nothing lost."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pooch
import pytest

import recsys_edu.data
from recsys_edu.data import fetch as fetching
from recsys_edu.data.fetch import ChecksumError, Source, fetch, unpack

CONTENT = os.urandom(3 << 20)  # three chunks
CHILD = """
import sys
from recsys_edu.data.fetch import Source, fetch
source = Source(*sys.argv[1:])
print("ready", flush=True)
print(fetch(source))
"""


def start_process(source: Source) -> subprocess.Popen:
    """Another process that fetches `source` into the same cache."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(recsys_edu.data.__file__).parents[2])
    }
    arguments = [source.name, source.known_hash, source.origin, source.terms]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_file_is_fetched_once_and_then_needs_no_network(cache, server):
    source = server.source("data.bin", CONTENT)
    assert fetch(source).read_bytes() == CONTENT
    server.close()
    assert fetch(source) == cache / "data.bin"
    assert len(server.ranges) == 1


def test_a_killed_download_resumes(cache, server):
    source = server.source("data.bin", CONTENT)
    server.pause_after = 2 << 20
    part = cache / "data.bin.part"
    process = start_process(source)
    wait_until(lambda: part.exists() and part.stat().st_size >= 1 << 20)
    process.kill()
    process.wait()
    server.pause_after = None
    done = part.stat().st_size
    assert not (cache / "data.bin").exists()

    assert fetch(source).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={done}-"]
    assert not part.exists()


def test_a_broken_connection_says_how_to_go_on_and_resumes(cache, server):
    source = server.source("data.bin", CONTENT)
    server.cut_after = 1 << 20
    with pytest.raises(OSError, match=r"Run again: .* from .*data\.bin\.part"):
        fetch(source)
    server.cut_after = None
    assert fetch(source).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={1 << 20}-"]


def test_a_server_that_cannot_resume_sends_it_all_again(cache, server):
    source = server.source("data.bin", CONTENT)
    server.supports_ranges = False
    cache.mkdir()
    (cache / "data.bin.part").write_bytes(CONTENT[:100])
    assert fetch(source).read_bytes() == CONTENT


def test_a_process_killed_before_the_rename_left_a_whole_part(cache, server):
    source = server.source("data.bin", CONTENT)
    cache.mkdir()
    (cache / "data.bin.part").write_bytes(CONTENT)
    assert fetch(source).read_bytes() == CONTENT


def test_a_wrong_checksum_is_explained_and_leaves_nothing(cache, server):
    source = server.source("data.bin", CONTENT)
    server.files["data.bin"] = b"a login page"
    with pytest.raises(ChecksumError) as error:
        fetch(source)
    found = hashlib.sha256(b"a login page").hexdigest()
    for part in (str(cache / "data.bin"), found, source.known_hash, "Run again"):
        assert part in str(error.value)
    assert not list(cache.glob("data.bin*"))
    server.files["data.bin"] = CONTENT
    assert fetch(source).read_bytes() == CONTENT


def test_md5_serves_too(cache, server):
    origin = server.source("data.bin", CONTENT).origin
    known_hash = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
    assert fetch(Source("data.bin", known_hash, origin, "")).read_bytes() == CONTENT


def test_a_good_cached_file_survives_a_bad_source(cache, server):
    source = server.source("data.bin", CONTENT)
    fetch(source)
    server.files["data.bin"] = b"garbage"
    assert fetch(source).read_bytes() == CONTENT


def test_a_damaged_cached_file_stays_until_a_good_one_is_there(cache, server):
    source = server.source("data.bin", CONTENT)
    cache.mkdir()
    (cache / "data.bin").write_bytes(b"bit rot")
    server.files.clear()
    with pytest.raises(OSError, match="404"):
        fetch(source)
    assert (cache / "data.bin").read_bytes() == b"bit rot"
    server.files["data.bin"] = CONTENT
    assert fetch(source).read_bytes() == CONTENT


def test_two_processes_at_once_download_once(cache, server):
    source = server.source("data.bin", CONTENT)
    server.pause_after = 1 << 20  # no request is answered until both have asked
    processes = [start_process(source) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    wait_until(lambda: server.ranges)
    time.sleep(0.3)  # time enough for a second request, were there one
    server.go_on.set()
    for process in processes:
        path = process.stdout.readline().strip()
        assert Path(path).read_bytes() == CONTENT
        assert process.wait(timeout=120) == 0
    assert len(server.ranges) == 1


def test_the_second_source_serves_where_the_first_fails(cache, server):
    first, second = server.source("a.bin", b"a"), server.source("b.bin", b"b")
    del server.files["a.bin"]
    assert fetch(first, second) == cache / "b.bin"
    # With the second in the cache, nobody asks the first again.
    server.close()
    assert fetch(first, second) == cache / "b.bin"


def test_where_all_sources_fail_each_is_named(cache, server):
    first, second = server.source("a.bin", b"a"), server.source("b.bin", b"b")
    del server.files["a.bin"]
    server.files["b.bin"] = b"c"
    with pytest.raises(OSError, match=r"(?s)a\.bin.*404.*b\.bin.*expected sha256:"):
        fetch(first, second)


def test_terms_are_logged_before_a_download(cache, server, caplog):
    with caplog.at_level("INFO", logger="recsys_edu"):
        fetch(server.source("data.bin", CONTENT, terms="GroupLens' data"))
    assert "GroupLens' data" in caplog.text


@pytest.fixture
def tiny_wheel(tmp_path, monkeypatch):
    """A wheel in a folder that is all that pip can see; its bytes."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = folder / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "tiny_data-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n"
        )
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return wheel.read_bytes()


def test_pip_brings_a_pinned_wheel(cache, tiny_wheel):
    known_hash = f"sha256:{hashlib.sha256(tiny_wheel).hexdigest()}"
    path = fetch(Source("tiny.whl", known_hash, "tiny-data==1.0", ""))
    assert path.read_bytes() == tiny_wheel


def test_a_wheel_that_pip_cannot_find_is_named(cache, tiny_wheel):
    with pytest.raises(OSError, match=r"pip could not download tiny-data==2\.0: "):
        fetch(Source("tiny.whl", "sha256:0", "tiny-data==2.0", ""))


def test_the_cache_is_the_users_own_unless_told_otherwise(cache, monkeypatch):
    assert fetching.cache_dir() == cache
    monkeypatch.delenv("RECSYS_EDU_CACHE")
    assert fetching.cache_dir() == Path(pooch.os_cache("recsys_edu"))


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def files_under(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if not path.name.endswith(".lock"))


def test_unpack_takes_what_is_named_and_is_done_once(tmp_path):
    archive = make_tar(tmp_path / "a.tar.gz", {"A/data/x.csv": b"x", "A/y.csv": b"y"})
    folder = unpack(archive, ["x.csv"])
    assert files_under(folder) == ["x.csv"]
    archive.write_bytes(b"no archive any more")
    assert unpack(archive, ["x.csv"]) == folder
    assert (folder / "x.csv").read_bytes() == b"x"


def test_unpack_writes_nothing_outside_its_folder(tmp_path):
    nest = tmp_path / "one" / "two"
    nest.mkdir(parents=True)
    members = {"../../evil.csv": b"1", str(tmp_path / "abs.csv"): b"2", "x.csv": b"3"}
    archive = make_tar(nest / "a.tar.gz", members)
    unpack(archive, ["evil.csv", "abs.csv", "x.csv"])
    assert files_under(tmp_path) == [
        "one/two/a.tar.gz",
        "one/two/a.tar.gz.d/abs.csv",
        "one/two/a.tar.gz.d/evil.csv",
        "one/two/a.tar.gz.d/x.csv",
    ]


def test_unpack_follows_no_link(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    link = tarfile.TarInfo("x.csv")
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(link)
    with pytest.raises(FileNotFoundError, match=r"a\.tar holds no \['x\.csv'\]"):
        unpack(tmp_path / "a.tar", ["x.csv"])


def test_unpack_goes_on_after_a_kill(tmp_path):
    archive = make_tar(tmp_path / "a.tar.gz", {"x.csv": b"whole", "y.csv": b"y"})
    folder = tmp_path / "a.tar.gz.d"
    folder.mkdir()
    (folder / "x.csv.part").write_bytes(b"who")
    unpack(archive, ["x.csv", "y.csv"])
    assert files_under(folder) == ["x.csv", "y.csv"]
    assert (folder / "x.csv").read_bytes() == b"whole"
