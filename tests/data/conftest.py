"""What the data tests share: a cache of their own, and a file server to break."""

import hashlib
import io
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from recsys_edu.data import Features, InteractionLog
from recsys_edu.data.fetch import Source


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, used by everything in the test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RECSYS_EDU_CACHE", str(folder))
    return folder


class FileServer:
    """Serves `files` (path -> bytes) over HTTP on this machine, and can misbehave."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []  # the Range header of each request
        self.supports_ranges = True
        self.pause_after: int | None = None  # after so many bytes of a body, ...
        self.go_on = threading.Event()  # ... wait for this
        self.cut_after: int | None = None  # or close the connection
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                """Keep the test output quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # a killed client is no surprise
        serve = self.http.serve_forever
        threading.Thread(target=serve, args=(0.02,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        body = self.files.get(request.path.lstrip("/"))
        if body is None:
            request.send_error(404)
            return
        start = 0
        if asked and self.supports_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(body):
                request.send_error(416)
                return
            request.send_response(206)
            span = f"bytes {start}-{len(body) - 1}/{len(body)}"
            request.send_header("Content-Range", span)
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        rest = body[start:][: self.cut_after]
        if self.pause_after is not None:
            request.wfile.write(rest[: self.pause_after])
            rest = rest[self.pause_after :]
            self.go_on.wait(timeout=30)
        request.wfile.write(rest)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/{name}"

    def source(self, name: str, content: bytes, terms: str = "anybody's") -> Source:
        """Serve `content` under `name`; the source that asks for just that."""
        self.files[name] = content
        known_hash = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return Source(name, known_hash, self.url(name), terms)

    def close(self) -> None:
        self.go_on.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(scope="session")
def zipped():
    """A function: name -> content of the members of a zip archive -> its bytes."""

    def make(members: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return buffer.getvalue()

    return make


@pytest.fixture
def server():
    """A running `FileServer`."""
    server = FileServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def make_log():
    """A function: users, timestamps and columns to replace -> InteractionLog."""

    def features(name: str, n: int) -> Features:
        people, things = np.array([f"u{i}" for i in range(n)]), np.arange(n) + 100
        ids = things if name == "item" else people
        sparse = {f"{name}_id": ids, "kind": np.arange(n) % 3}
        return Features.fit(ids, {"weight": np.arange(float(n))}, sparse)

    def make(user, timestamp, /, **columns) -> InteractionLog:
        events = len(user)
        n_users = max(user, default=0) + 1
        log = dict(
            user=np.asarray(user, dtype=np.int64),
            item=np.arange(events) % 7,
            timestamp=np.asarray(timestamp, dtype=np.int64),
            label=(np.arange(events) % 2).astype(np.float32),
            action=np.arange(events) % 5,
            users=features("user", n_users),
            items=features("item", 7),
            item_titles=None,
            actions=(0, 1, 2, 3, 4),
            name="toy",
        )
        return InteractionLog(**log | columns)

    return make
