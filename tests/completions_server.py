"""A small OpenAI-compatible server of a tiny model, with adapters loaded while it runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import peft
import torch
import transformers


class Served:
    """The base and its adapters; answers one call at a time."""

    def __init__(self, base: Path) -> None:
        self.base, self.lock = base, threading.Lock()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        self.models: dict[str, Any] = {
            "base": transformers.AutoModelForCausalLM.from_pretrained(base).eval()
        }
        self.loaded: list[str] = []

    def load(self, name: str, path: str) -> None:
        fresh = transformers.AutoModelForCausalLM.from_pretrained(self.base)
        self.models[name] = peft.PeftModel.from_pretrained(fresh, path).eval()
        self.loaded.append(name)

    @torch.inference_mode()
    def complete(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        model = self.models[asked["model"]]
        prompts = asked["prompt"]
        prompts = [prompts] if isinstance(prompts[0], int) else prompts
        answer = self._echo if asked.get("echo") else self._generate
        return [{"index": i, **answer(model, ids, asked)} for i, ids in enumerate(prompts)]

    def _echo(self, model: Any, ids: list[int], asked: dict[str, Any]) -> dict[str, Any]:
        """Log-probabilities of the prompt and of one more token, as vLLM gives them."""
        logits = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        more = [*ids, int(logits[-1].argmax())]
        own = [None, *(float(logits[i, token]) for i, token in enumerate(more[1:]))]
        best = [None, *({"x": float(row.max())} for row in logits)]
        return {"text": "", "logprobs": {"token_logprobs": own, "top_logprobs": best}}

    def _generate(self, model: Any, ids: list[int], asked: dict[str, Any]) -> dict[str, Any]:
        made = model.generate(
            input_ids=torch.tensor([ids]),
            max_new_tokens=asked["max_tokens"],
            do_sample=False,
            pad_token_id=0,
        )[0, len(ids) :]
        text = self.tokenizer.decode(made, skip_special_tokens=True)
        for stop in asked["stop"]:
            text = text.split(stop)[0]
        return {"text": text}


@contextmanager
def serving(base: Path) -> Iterator[tuple[str, Served]]:
    """Yields the server's address and what it serves."""
    served = Served(base)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"data": [{"id": name} for name in served.models]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with served.lock:
                if self.path.endswith("/unload_lora_adapter"):
                    del served.models[asked["lora_name"]]
                    self._answer(200, {})
                elif self.path.endswith("/load_lora_adapter"):
                    served.load(asked["lora_name"], asked["lora_path"])
                    self._answer(200, {})
                elif asked["model"] in served.models:
                    self._answer(200, {"choices": served.complete(asked)})
                else:
                    self._answer(404, {"error": f"no model {asked['model']}"})

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Keeps quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", served
    finally:
        server.shutdown()
        server.server_close()
