"""Split fine-tuning over a connection: `evomerge split vendor`, `evomerge split customer`."""

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from evaluators.tasks.data import data_path, read_lines
from experiments.experts.sentences.sentences import Sentence, read_sentences
from experiments.experts.split.customer import Customer, EncodedSentence, encode
from experiments.experts.split.directions import Directions
from experiments.experts.split.fitting import fit, fit_directions
from experiments.experts.split.halves import Bottom
from experiments.experts.split.privatization import Privatization, PrivatizationSettings
from experiments.experts.split.sessions import (
    CustomerSession,
    Endpoint,
    Offer,
    Terms,
    VendorSession,
)
from experiments.experts.split.states import StateFolder
from experiments.experts.split.vendor import Vendor, VendorSettings
from experiments.experts.split.wire import WireError
from experiments.pseudonyms.pseudonymize import read_key
from experiments.runs.cache import digest_of
from experiments.runs.device import choose_device
from experiments.runs.directory import check_writable, locked
from experiments.runs.errors import UserError, explained
from experiments.runs.options import check_groups, check_options
from experiments.runs.processes import torch_threads
from experiments.runs.progress import ProgressBar
from experiments.runs.starts import check_starts, write_start
from experiments.setup.assemble import open_part
from experiments.zoo.opening import open_model, open_sources
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.privacy_record import PrivacyRecord
from merging.files import write_text
from merging.privacy.composition import NO_GUARANTEE, Price
from merging.privacy.ledger import Ledger
from merging.zoo.store import SOURCE, Zoo

_UPLOAD = "upload"
_RESULT = "result.json"
_DIRECTIONS = "directions.safetensors"


def run_vendor(config: DictConfig) -> None:
    """Waits for a customer, trains on its states and writes the expert to ``config.out``.

    Raises:
        UserError: wrong input, found before anyone is waited for; or a message was refused.
    """
    with explained():
        line, base = _opened(config, "out")
        out, folder = Path(config.out), Path(config.folder)
        check_writable(out, "out")
        if out.exists() and not folder.is_dir():
            raise UserError(f"out={out} exists already: name a new directory")
        if config.base.startswith(SOURCE):
            base = _taken_out(config.base, base, folder / "base")
        device = choose_device(config.device)
        settings = VendorSettings(
            open_part(config.schedule),
            open_part(config.lora),
            seed=config.seed,
            checkpoint_steps=config.checkpoint_steps,
        )

    def open_vendor(offer: Offer) -> Vendor:
        identity = {"upload": offer.upload, "data": offer.data, "examples": offer.examples}
        given = base, config.blocks, offer.classes, settings, folder
        return Vendor(*given, identity=identity, device=device)

    with _at_work(config):
        VendorSession(line, Terms(base.sha256, config.blocks), open_vendor, out).serve()
    print(out)


def _taken_out(source: str, base: Checkpoint, out: Path) -> Checkpoint:
    """Returns a zoo's model from plain files, which transformers reads and peft names."""
    if not out.is_dir():
        zoo, name = Zoo.of(source)
        open_model(zoo.directory, name, out)
    plain = Checkpoint.open(str(out), encoder=True)
    if plain.sha256 != base.sha256:
        raise UserError(f"{out} holds another model than base={source}: name another folder")
    return plain


def run_customer(config: DictConfig) -> None:
    """Sends what texts become in the bottom, noised, and asks about the held-out texts.

    Raises:
        UserError: wrong input, found before anything is sent; or a message was refused.
    """
    with explained():
        line, base = _opened(config, "data", "train")
        check_starts()
        settings = open_part(config.privatization) if config.privatization else None
        texts = _Texts.read(config, base)
        bottom = Bottom(
            base.module(dtype=torch.float32, device=torch.device("cpu")), config.blocks
        )
    with _at_work(config):
        session = _filled(config, line, base, bottom, texts, settings)
        _write_starts(session.offer, Path(config.folder))
        with ProgressBar(None, "the vendor trains", "step") as bar:
            session.on_progress = partial(_advance, bar, [0])
            logits = session.run()
        print(_result(logits, texts, Path(config.folder)))


@dataclass(frozen=True)
class _Texts:
    """A customer's texts as tokens; the labels of those that are held out stay here."""

    train: list[EncodedSentence]
    held_out: list[EncodedSentence]
    public: list[EncodedSentence] | None
    everywhere: frozenset[int]

    @classmethod
    def read(cls, config: DictConfig, base: Checkpoint) -> "_Texts":
        tokenizer = base.tokenizer()
        if tokenizer is None:
            raise UserError(f"base={config.base} brings no tokenizer: name one that does")
        positions = getattr(base.config.get_text_config(), "max_position_embeddings", 512)
        length = min(config.max_length, tokenizer.model_max_length, positions)

        def encoded(file: str | None) -> list[EncodedSentence]:
            if file is None:
                return []
            return encode(tokenizer, read_sentences(data_path(file, None)), length)

        public = None
        if config.public is not None:
            lines = read_lines(data_path(config.public, None))
            given = [Sentence(line.text("text"), 0) for line in lines]
            public = encode(tokenizer, given, length)
        everywhere = frozenset(tokenizer.all_special_ids)
        return cls(encoded(config.train), encoded(config.held_out), public, everywhere)

    @property
    def classes(self) -> int:
        return 1 + max(1, *(e.label or 0 for e in (*self.train, *self.held_out)))


def _opened(config: DictConfig, *needed: str) -> tuple[Endpoint, Checkpoint]:
    """Returns the line and the base of either side, all options checked."""
    check_options(config)
    check_groups(config)
    for name in (*needed, "timeout_s"):
        if config[name] is None:
            raise UserError(f"{name} is not set: give {name}=VALUE")
    file = None if config.secret_file is None else Path(config.secret_file)
    try:
        secret = read_key(variable=config.secret_env, file=file, environment=os.environ)
    except ValueError as error:
        raise UserError(f"secret_file or secret_env: {error}") from error
    check_writable(Path(config.folder), "folder")
    open_sources([config.base])
    line = Endpoint(
        config.host,
        config.port,
        secret,
        timeout_s=config.timeout_s,
        limit_bytes=int(config.limit_mb * 2**20),
        wait_s=config.wait_s,
        tell=partial(print, file=sys.stderr, flush=True),
    )
    return line, Checkpoint.open(config.base, encoder=True)


@contextmanager
def _at_work(config: DictConfig) -> Iterator[None]:
    """Holds the folder; what goes wrong on a line or in a folder is told in a sentence."""
    with locked(Path(config.folder)), torch_threads(config.threads):
        try:
            yield
        except (WireError, ValueError, OSError) as error:
            raise UserError(str(error)) from error


def _filled(
    config: DictConfig,
    line: Endpoint,
    base: Checkpoint,
    bottom: Bottom,
    texts: _Texts,
    settings: PrivatizationSettings | None,
) -> CustomerSession:
    """Returns the session after all that it will send is on disk."""
    folder, terms = Path(config.folder), Terms(base.sha256, config.blocks)
    upload = folder / _UPLOAD
    if not upload.exists():
        write_text(upload, secrets.token_hex(16))
    made = {
        **terms.__dict__,
        "privatization": str(settings),
        "together": config.examples_per_message,
    }
    sent = StateFolder(folder / "sent", {**made, "texts": _digest(texts.train)})
    asked = StateFolder(folder / "asked", {**made, "texts": _digest(texts.held_out)})
    privatization, record = (
        None,
        PrivacyRecord(unrecorded=(f"the states of {config.data}, sent as they are",)),
    )
    if settings is not None:
        privatization = _privatization(config, base, bottom, texts, settings, begun=len(sent) > 0)
        record = privatization.charged(Ledger(), config.data).record()
    customer = Customer(bottom, privatization, "states" if settings is None else settings.where)
    unlabelled = [EncodedSentence(example.tokens, None) for example in texts.held_out]
    with ProgressBar(len(texts.train) + len(unlabelled), "noising", "text") as bar:
        for states, examples, name in (
            (sent, texts.train, "train"),
            (asked, unlabelled, "held out"),
        ):
            bar.update(len(states))
            customer.fill(
                states,
                examples,
                name,
                together=config.examples_per_message,
                on_examples=bar.update,
            )
    offer = Offer(
        config.data,
        upload.read_text(encoding="utf-8"),
        len(texts.train),
        texts.classes,
        record.to_json(),
    )
    return CustomerSession(line, terms, offer, sent, asked)


def _privatization(
    config: DictConfig,
    base: Checkpoint,
    bottom: Bottom,
    texts: _Texts,
    settings: PrivatizationSettings,
    *,
    begun: bool,
) -> Privatization:
    belongs = [config.data, base.sha256, str(config.blocks)]
    directions = None
    if settings.directions is not None:
        # Kept: other threads would fit others in a last bit, and noise anew what was noised.
        file = Path(config.folder) / _DIRECTIONS
        if not file.is_file():
            if begun:
                raise UserError(
                    f"{file} is missing, and texts were noised in its directions: put it back, or "
                    "start in an empty folder"
                )
            given = settings.directions, bottom, texts.train
            fitted = fit_directions(*given, classes=texts.classes, public=texts.public)
            fitted.save(file)
        directions = Directions.read(file)
    return fit(
        settings,
        bottom,
        texts.train,
        classes=texts.classes,
        model=f"model {base.sha256[:12]}",
        noise=settings.noise(Path(config.folder), belongs, begun=begun),
        everywhere=texts.everywhere,
        public=texts.public,
        directions=directions,
    )


def _write_starts(offer: Offer, folder: Path) -> None:
    """Writes down what is about to be given out, for the ledgers of others on the same data."""
    record = PrivacyRecord.from_json(offer.record)
    for spend in record.spends:
        price = Price(spend.epsilon, spend.delta)
        void = None if spend.metric is None else "noised states bound no (ε, δ) of a record"
        write_start(spend.dataset, str(spend.release), price, folder, void=void)
    for what in record.unrecorded:
        release = f"states {offer.upload}"
        write_start(offer.data, release, NO_GUARANTEE, folder, void=f"{what}, went to a vendor")


def _digest(examples: list[EncodedSentence]) -> str:
    """Returns what tells the examples of a folder from others; it stays in the folder."""
    return digest_of([(example.tokens, example.label) for example in examples], [])


def _advance(bar: ProgressBar, seen: list[int], steps: int, of: int) -> None:
    bar.update(max(0, steps - seen[0]), note=f"of {of}")
    seen[0] = max(steps, seen[0])


def _result(logits: Tensor, texts: _Texts, folder: Path) -> str:
    """Writes and returns how many of the held-out texts are right."""
    if not texts.held_out:
        return "the vendor has trained; no held-out texts were asked about"
    labels = torch.tensor([example.label for example in texts.held_out])
    accuracy = float((logits.argmax(dim=1) == labels).double().mean())
    result: dict[str, Any] = {"accuracy": accuracy, "held_out": len(labels)}
    write_text(folder / _RESULT, json.dumps(result) + "\n")
    return f"accuracy {accuracy:.4f} on {len(labels)} held-out texts, noised as the others were"
