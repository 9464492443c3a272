"""A Hub on this machine: as much of its HTTP interface as an upload needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_LARGE = (".safetensors",)


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        repos: id to visibility, and to the files that are committed.
        objects: large files by their sha256; `received` counts the bodies that came for each.
        cut: how many of the next requests of a kind lose their connection: ``PUT``, ``commit``.
        tokens: of the ``Authorization`` headers that came.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.visibility: dict[str, str | None] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.received: dict[str, int] = {}
        self.cut: dict[str, int] = {}
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Says nothing of connections that were cut."""

    def is_cut(self, kind: str) -> bool:
        self.cut[kind] = left = self.cut.get(kind, 0) - 1
        return left >= 0

    def commit(self, repo: str, lines: bytes) -> None:
        for line in map(json.loads, lines.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[repo][value["path"]] = self.objects[value["oid"]]


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self.answer({"objects": [self.action(o) for o in json.loads(body)["objects"]]})
        match = re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", path)
        assert match is not None, path
        if match[2] == "preupload":
            return self.answer({"files": [_mode(f["path"]) for f in json.loads(body)["files"]]})
        if self.server.is_cut("commit"):
            return self.hang_up()
        self.server.commit(match[1], body)
        url = f"{self.server.url}/{match[1]}/commit/1"
        return self.answer({"commitUrl": url, "commitOid": "1" * 40, "success": True})

    def do_PUT(self) -> None:
        oid, size = self.path.rpartition("/")[2], int(self.headers["Content-Length"])
        if self.server.is_cut("PUT"):
            self.rfile.read(size // 2)
            return self.hang_up()
        body = self.rfile.read(size)
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.server.received[oid] = self.server.received.get(oid, 0) + 1
        return self.answer({})

    def create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        known = repo in self.server.visibility
        if not known:
            self.server.visibility[repo] = asked.get("visibility")
            self.server.files[repo] = {}
        self.answer({"url": f"{self.server.url}/{repo}"}, 409 if known else 200)

    def action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.server.objects:
            return wanted
        return {
            **wanted,
            "actions": {"upload": {"href": f"{self.server.url}/storage/{wanted['oid']}"}},
        }

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(_LARGE) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


@contextmanager
def hub() -> Iterator[Hub]:
    """Yields a Hub that is answering."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
