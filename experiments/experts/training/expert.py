"""One expert from base and texts to a directory with its weights and what they cost."""

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments.experts.training.language_model import Lora, open_model, open_tokenizer, save
from experiments.experts.training.records import encode
from experiments.experts.training.regime import Regime, TrainingPrivacy
from experiments.experts.training.train import Trained, train
from experiments.runs.starts import PUBLIC_NOISE, beside_others, check_starts, write_start
from merging.checkpoints.mechanisms import GaussianMechanism
from merging.checkpoints.privacy_record import PrivacySpend
from merging.checkpoints.sources import resolve
from merging.files import date_alike, write_text
from merging.privacy.composition import NO_GUARANTEE, Price
from merging.privacy.ledger import Ledger
from merging.saving.save import staged, write_ledger

TRAINING_FILE = "training.json"

_PRIVATE = ("longest_record_tokens", "empty_lots", "presentations", "last_losses")
"""What a report computes of the records without noise."""


@dataclass(frozen=True)
class DataSet:
    """The records that an expert is trained on.

    Args:
        identity: name of the data; equal names, the same data. No digest of the records: whoever
            knows all but one could try the last.
        group_size: how many records one secret may fill.
        max_length: most tokens of a record; the rest is cut off.
        disjoint_from: identities of data sets that share no record with this one, for the
            ledger; all others are taken to overlap with it.
    """

    identity: str
    texts: Sequence[str]
    group_size: int = 1
    max_length: int = 1024
    disjoint_from: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.texts) < 2:
            raise ValueError(
                f"data set {self.identity!r} has {len(self.texts)} records, expected at least 2"
            )


def train_expert(
    base: str | Path,
    data: DataSet,
    regime: Regime,
    out: Path,
    *,
    label: str,
    seed: int,
    lora: Lora | None = None,
    device: torch.device | str = "cpu",
) -> Trained:
    """Fine-tunes the base on the data and writes `out`, at once or not at all.

    Beside the weights lie ``training.json`` and, where the training was private, ``privacy.json``.
    The latter lists what the base cost too; a base that was trained without a record makes the
    expert not private. So does a missing file: that of ``clipping=as_released`` has none, because
    what was accounted for does not hold, nor has that of ``randomness=seed``. What is written of
    a private training beside its price says nothing of the records: their losses, lengths and
    lots are withheld, and the files' dates do not tell when it ended.

    Args:
        base: Hugging Face id or directory of a causal language model.
        label: name of the regime; with `seed` it seeds lots, dropout and noise.
        seed: of the training; a private one draws them in secret, see `Privacy`.
        lora: train an adapter; None: all parameters.

    Raises:
        ValueError: the lot is larger than the number of records, or delta allows to give one of
            them away.
        CheckpointError: `out` cannot be written; the base is an adapter, or its record is broken.
    """
    start = Ledger.of_base(resolve(str(base)), "the model it started from")
    model = open_model(base, lora, seed=seed, device=torch.device(device))
    records = encode(open_tokenizer(base), data.texts, data.max_length)
    facts = {
        "base": str(base),
        "records": len(records),
        "longest_record_tokens": max(map(len, records)) - 1,
        "lora": None if lora is None else asdict(lora),
        "seed": seed,
    }
    return train_and_write(
        lambda: train(model, records, regime, seed=seed, label=label),
        lambda draft: save(model, base, draft),
        start,
        data,
        regime,
        out,
        label=label,
        facts=facts,
    )


def train_and_write(
    run: Callable[[], Trained],
    write: Callable[[Path], None],
    start: Ledger,
    data: DataSet,
    regime: Regime,
    out: Path,
    *,
    label: str,
    facts: Mapping[str, Any],
) -> Trained:
    """Trains and writes `out`, with what it cost, at once or not at all; see `train_expert`.

    Args:
        run: trains by `regime`.
        write: what was trained, into a directory.
        start: of the model that the training starts from.
        facts: what else ``training.json`` says; what of it is private is withheld.
    """
    if regime.privacy is not None:
        check_starts()
    trained = run()
    ledger = charged(start, data, regime, label, trained)
    report = {"label": label, "data": data.identity, **facts, "regime": asdict(regime)}
    report |= _outcome(trained, regime, holds=ledger is not None)
    if ledger is not None:  # what dies before has left nothing
        own = ledger.spends[-1]
        write_start(own.dataset, str(own.release), Price(own.epsilon, own.delta), out)
        ledger = beside_others(ledger, "training")
    elif regime.privacy is not None:
        void = _void(regime.privacy)
        write_start(data.identity, _new_release(), NO_GUARANTEE, out, void=void)
    with staged(out) as draft:
        write(draft)
        if ledger is not None:
            report |= dict.fromkeys(_PRIVATE, "withheld")
            write_ledger(draft, ledger)
        write_text(draft / TRAINING_FILE, json.dumps(report, indent=2) + "\n")
    if ledger is not None:
        date_alike([*out.rglob("*"), out])
    return trained


def charged(
    start: Ledger, data: DataSet, regime: Regime, label: str, trained: Trained
) -> Ledger | None:
    """Returns the ledger of the base with what a training has cost; None: it was not private."""
    spent, privacy = trained.spent, regime.privacy
    if spent is None or privacy is None or math.isinf(spent.epsilon) or _void(privacy) is not None:
        return None
    return start.add(
        PrivacySpend(
            dataset=data.identity,
            epsilon=spent.epsilon,
            delta=privacy.delta,
            accountant=f"opacus {privacy.accountant}",
            accountant_version=version("opacus"),
            mechanisms=(
                GaussianMechanism(spent.noise_multiplier, spent.sample_rate, trained.updates),
            ),
            group_size=data.group_size,
            disjoint_from=tuple(data.disjoint_from),
            what=f"DP-SGD training, {label}",
            release=_new_release(),
        )
    )


def _new_release() -> str:
    return f"training {secrets.token_hex(8)}"


def _void(privacy: TrainingPrivacy) -> str | None:
    """Returns why a training promises nothing, whatever was accounted for; None: it does."""
    if privacy.randomness == "seed":
        return PUBLIC_NOISE
    if privacy.clipping == "as_released":
        return "clipping=as_released does not bound what a record moves"
    return "it had no noise" if privacy.noise_multiplier == 0 else None


def _outcome(trained: Trained, regime: Regime, *, holds: bool) -> dict[str, Any]:
    outcome: dict[str, Any] = {
        "updates": trained.updates,
        "empty_lots": trained.empty,
        "presentations": trained.presentations,
        "last_losses": [round(loss, 6) for loss in trained.losses[-10:]],
    }
    if trained.spent is not None and regime.privacy is not None:
        outcome["privacy"] = {
            "noise_multiplier": trained.spent.noise_multiplier,
            "sample_rate": trained.spent.sample_rate,
            "epsilon": None if math.isinf(trained.spent.epsilon) else trained.spent.epsilon,
            "delta": regime.privacy.delta,
            "holds": holds,
        }
    return outcome
