"""How well does a model write down what is said?"""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.io import wavfile
from transformers import AutoFeatureExtractor

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.requests import (
    Generate,
    Generated,
    Loglikelihood,
    Media,
    Response,
    totals_of,
)
from evaluators.tasks.data import Line, data_path, digest, read_lines, take_items
from evaluators.tasks.encoding import check_fits
from evaluators.tasks.splits import ItemDraw
from evaluators.tasks.text_to_text import RightText, bits_per_byte, share_cut_off

Sound: TypeAlias = npt.NDArray[np.float32]


class Transcription:
    """What Whisper and its kind hear.

    word_error_rate = sum edits / sum words: the fewest words to insert, leave out or replace that
    turn the generated texts into the right ones; the cases are each item's edits over the mean
    words of all items. bits_per_byte is that of the right texts; see `TextToText`.

    Args:
        data: JSON-lines, CSV or Parquet file, one recording in each line.
        audio_field: where a line holds the path of a ``.wav`` file, relative to `data`; or a
            mapping with ``array`` and ``sampling_rate``.
        text_field: where it holds what is said.
        language: that the decoder is told, and `task`; None: as the tokenizer says.
        plain: whether words are compared in lower case and without punctuation.
    """

    metrics: Mapping[str, Direction] = dict.fromkeys(
        ("word_error_rate", "bits_per_byte"), "minimize"
    )
    hub_task = "automatic-speech-recognition"
    subset = on_subset

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        split: str | None = None,
        audio_field: str = "audio",
        text_field: str = "text",
        language: str | None = None,
        task: str | None = None,
        max_new_tokens: int = 128,
        plain: bool = True,
        take: str | ItemDraw | None = None,
    ) -> None:
        path = data_path(data, split)
        if not model.encoder_decoder or model.directory is None or model.tokenizer is None:
            raise ValueError(
                f"transcription on {path.name} needs an encoder-decoder of sounds with its "
                "tokenizer and preprocessor_config.json, such as Whisper"
            )
        extractor = _extractor(model.directory)
        begin, tokenizer = _beginning(model, language, task)
        self._plain = plain
        taken = take_items(
            [
                (line, _sound(line, audio_field, extractor), line.text(text_field))
                for line in read_lines(path)
            ],
            take,
            path,
            key=lambda one: (_digest(one[1], one[2]), None),
        )
        items = []
        for line, sound, text in taken.values:
            features = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            whole = _digest(sound, text)
            media = Media(whole, dict(features))
            said = (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)
            requests = (
                Loglikelihood(begin, said, media),
                Generate(begin, max_new_tokens, options=(("num_beams", 1),), media=media),
            )
            check_fits(requests, model.max_length, str(line))
            if not _words(text, plain):
                raise ValueError(f"{line}: field {text_field!r} holds no word: remove the line")
            items.append(TaskItem(whole, requests, RightText(text)))
        self.items = ItemSet(taken.source, tuple(items), found=taken.found)
        # of all items, also on a subset
        self._mean_bytes = float(np.mean([item.target.bytes for item in items]))
        self._mean_words = float(np.mean([len(_words(item.target.text, plain)) for item in items]))

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns the word error rate, from 0, and bits per byte."""
        answers = [one for one in responses if isinstance(one, Generated)]
        wanted = [_words(target.text, self._plain) for target in self.items.targets]
        pairs = zip(answers, wanted, strict=True)
        edits = np.array([edit_distance(_words(a.text, self._plain), w) for a, w in pairs], float)
        rate = float(edits.sum() / sum(map(len, wanted)))
        scored = bits_per_byte(totals_of(responses), self.items.targets, self._mean_bytes)
        return {
            "word_error_rate": Score(
                rate, edits / self._mean_words, cut_off=share_cut_off(answers)
            ),
            "bits_per_byte": scored,
        }


def edit_distance(found: Sequence[str], wanted: Sequence[str]) -> int:
    """Returns the fewest words to insert, leave out or replace that make `found` `wanted`.

    Example:
        >>> edit_distance("a b c".split(), "b c d e".split())
        3
    """
    row = list(range(len(wanted) + 1))
    for i, word in enumerate(found, start=1):
        above, row = row, [i]
        for j, other in enumerate(wanted, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (word != other)))
    return row[-1]


def _words(text: str, plain: bool) -> list[str]:
    return (re.sub(r"[^\w\s']|_", " ", text.lower()) if plain else text).split()


def _digest(sound: Sound, text: str) -> str:
    return digest(list(sound.shape), sound.tobytes().hex(), text)


def _extractor(directory: Path) -> Any:
    try:
        extractor: Any = AutoFeatureExtractor.from_pretrained(directory)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{directory} has no preprocessor_config.json for sounds: use a model of sounds"
        ) from error
    return extractor


def _beginning(
    model: ModelInfo, language: str | None, task: str | None
) -> tuple[tuple[int, ...], Any]:
    """Returns the tokens that a decoder begins with, and the tokenizer."""
    tokenizer = model.tokenizer
    if hasattr(tokenizer, "set_prefix_tokens"):
        if language is not None or task is not None:
            tokenizer = copy.deepcopy(tokenizer)  # other tasks have the model's
            tokenizer.set_prefix_tokens(language=language, task=task)
        settings = model.directory and model.directory / "generation_config.json"
        several = settings and settings.is_file() and "lang_to_id" in settings.read_text("utf-8")
        if several and tokenizer.language is None:
            raise ValueError("the base knows several languages: set language, for example english")
        return tuple(tokenizer.prefix_tokens), tokenizer
    if language is not None or task is not None:
        raise ValueError("the base's tokenizer knows no language and no task: leave them out")
    if model.decoder_start is None:
        raise ValueError("the base's configuration names no decoder_start_token_id: set it")
    return (model.decoder_start,), tokenizer


def _sound(line: Line, field: str, extractor: Any) -> Sound:
    """Returns ``(samples,)`` float32 in [-1, 1]."""
    value: Any = line.field(field, (str, dict))
    if isinstance(value, str):
        file = line.path.parent / value
        if not file.is_file():
            raise ValueError(f"{line}: sound file {file} does not exist")
        try:
            rate, samples = wavfile.read(file)
        except ValueError as error:
            raise ValueError(f"{line}: {file} is no WAV file ({error}): convert it") from error
    else:
        rate, samples = value.get("sampling_rate"), np.array(value.get("array"), np.float32)
    if rate != extractor.sampling_rate:
        raise ValueError(
            f"{line}: the sound has {rate} samples a second, the model takes "
            f"{extractor.sampling_rate}: resample it"
        )
    if samples.dtype.kind in "iu":
        info = np.iinfo(samples.dtype)
        samples = (samples - (info.max + info.min + 1) / 2) / ((info.max - info.min + 1) / 2)
    samples = samples.mean(axis=1) if samples.ndim == 2 else samples
    most = getattr(extractor, "n_samples", None)
    if most is not None and len(samples) > most:
        raise ValueError(
            f"{line}: the sound has {len(samples)} samples, the model takes {most}: cut it"
        )
    return np.ascontiguousarray(samples, dtype=np.float32)
