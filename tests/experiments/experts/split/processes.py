"""Both verbs as processes of their own, and a wire between them that is read."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from experiments.cli import main
from tests.forking import FORKING


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def start(arguments: list[str], log: Path) -> BaseProcess:
    """Starts ``evomerge ARGUMENTS``; what it prints is added to `log`."""
    process = FORKING.Process(target=_run, args=(arguments, log), daemon=True)
    process.start()
    return process


def _run(arguments: list[str], log: Path) -> None:
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    torch.set_num_threads(1)
    raise SystemExit(main(arguments))


def ended(process: BaseProcess) -> int | None:
    """Waits for the end; returns the exit status."""
    process.join(60)
    return process.exitcode


class Tap(threading.Thread):
    """Hands on all bytes between customers and the vendor behind `port`, and keeps them.

    `watch` is called with the side and all that it sent so far, before what is new is handed on.
    """

    def __init__(self, port: int, watch: Callable[[str, bytearray], object]) -> None:
        super().__init__(daemon=True)
        self.sent = {"customer": bytearray(), "vendor": bytearray()}
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._target, self._watch = port, watch
        self.start()

    def run(self) -> None:
        while True:
            near, _ = self._server.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            for side, source, sink in (("customer", near, far), ("vendor", far, near)):
                threading.Thread(target=self._pump, args=(side, source, sink), daemon=True).start()

    def _pump(self, side: str, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(4096):
                self.sent[side] += piece
                self._watch(side, self.sent[side])
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Aside(threading.Thread):
    """Runs the other side; `ended` holds what it returned or raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work, self.ended = work, None
        self.start()

    def run(self) -> None:
        try:
            self.ended = self._work()
        except Exception as error:
            self.ended = error

    def result(self) -> Any:
        self.join(10)
        assert not self.is_alive()
        return self.ended
