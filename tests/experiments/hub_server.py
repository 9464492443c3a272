"""A Hub on this machine: as much of its HTTP interface as an upload needs.

Large files come as git-lfs has them, or by Xet: the Hub names a store of chunks, which is a folder
here (hf_xet writes and reads one as it does the real store), and the shards in it say by which
of the store's hashes each file is read (https://huggingface.co/docs/xet/shard).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_LARGE = (".safetensors",)


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        repos: id to visibility, and to the files that are committed.
        objects: large files by their sha256; `received` counts the bodies that came for each.
        store: Xet's chunks; a large file of a commit that is not among the objects is in it.
        cut: how many of the next requests of a kind lose their connection: ``PUT``, ``commit``.
        tokens: of the ``Authorization`` headers that came.
    """

    daemon_threads = True

    def __init__(self, store: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = store
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
                oid = value["oid"]
                self.files[repo][value["path"]] = (
                    self.objects[oid] if oid in self.objects else self.from_store(oid)
                )

    @property
    def chunks(self) -> dict[str, int]:
        """When each block of chunks came into the store."""
        blocks = self.store.rglob("xorbs/xorbs/*")
        return {block.name: block.stat().st_mtime_ns for block in blocks}

    def from_store(self, oid: str) -> bytes:
        """Returns the file of a sha256 as hf_xet puts it together from the chunks."""
        from hf_xet import XetFileInfo
        from huggingface_hub.utils._xet import get_xet_session

        name, size = next(
            (name, size)
            for shard in self.store.rglob("xorbs/shards/*.mdb")
            for name, sha256, size in _files(shard.read_bytes())
            if sha256 == oid
        )
        with tempfile.TemporaryDirectory() as room:
            file = Path(room) / "file"
            group = get_xet_session().new_file_download_group(
                token_refresh_url=f"{self.url}/xet-read-token", token_refresh_headers={}
            )
            with group:
                group.start_download_file(XetFileInfo(name, size), str(file))
            return file.read_bytes()


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

    def do_GET(self) -> None:
        assert re.search(r"/xet-(read|write)-token(/main)?$", self.path), self.path
        if "write" in self.path:
            self.server.tokens.add(self.headers.get("Authorization", ""))
        until = int(time.time()) + 3600
        token = {
            "accessToken": "of the store",
            "exp": until,
            "casUrl": f"local://{self.server.store}",
        }
        return self.answer(token)

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


def _files(shard: bytes) -> Iterator[tuple[str, str, int]]:
    """Yields hash, sha256 and bytes of each file in a shard, whose hashes are 64-bit words."""
    at = 48
    while (name := _hexadecimal(shard[at : at + 32])) != 64 * "f":
        flags, segments = struct.unpack_from("<2I", shard, at + 32)
        assert flags >> 30 == 3, "segments are verified, and the sha256 is there"
        size = sum(
            struct.unpack_from("<I", shard, at + 48 * i + 36)[0] for i in range(1, segments + 1)
        )
        at += 48 * (1 + 2 * segments)
        yield name, _hexadecimal(shard[at : at + 32]), size
        at += 48


def _hexadecimal(words: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", words))


def _mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(_LARGE) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


@contextmanager
def hub(store: Path) -> Iterator[Hub]:
    """Yields a Hub that is answering, with Xet's chunks in a folder."""
    with Hub(store) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
