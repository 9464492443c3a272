"""Encoder-decoders against transformers' own loss and generate, row by row."""

from __future__ import annotations

import re
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    MarianConfig,
    MarianMTModel,
    WhisperTokenizer,
)

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.requests import (
    EvaluationError,
    Generate,
    Generated,
    Likelihood,
    Loglikelihood,
    Request,
)
from evaluators.tasks.multiple_choice import MultipleChoice
from evaluators.tasks.perplexity import Perplexity
from evaluators.tasks.text_to_text import TextToText
from evaluators.tasks.transcription import Transcription, edit_distance
from merging.lora.low_rank import LowRankProduct
from tests.evaluators.conftest import TURNED as ROWS
from tests.evaluators.conftest import opened, sentence, sounds

WriteLines = Callable[..., str]


@pytest.mark.parametrize("batch_tokens", [8192, 60, 1])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_likelihoods_and_answers_are_those_of_transformers(
    bases: Path, write_lines: WriteLines, kind: str, batch_tokens: int
) -> None:
    """The loss of each target alone; greedy generation."""
    resident = opened(bases / kind)
    evaluator = TextToText(resident.info, data=write_lines(ROWS), prefix="to: ", max_new_tokens=9)
    answers = Engine(resident, batch_tokens=batch_tokens).run(evaluator.items.requests)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(bases / kind).eval()
    tokenizer = resident.info.tokenizer
    texts = set()
    for row, (likelihood, generated) in zip(
        ROWS, zip(answers[::2], answers[1::2], strict=True), strict=True
    ):
        source = tokenizer("to: " + row["source"], return_tensors="pt")
        source.pop("token_type_ids", None)
        labels = tokenizer(text_target=row["target"], return_tensors="pt").input_ids
        with torch.no_grad():
            loss = model(**source, labels=labels).loss
            whole = model.generate(**source, max_new_tokens=9, num_beams=1, do_sample=False)
        assert isinstance(likelihood, Likelihood)
        assert likelihood.total == pytest.approx(-float(loss) * labels.shape[1], rel=1e-5)
        assert isinstance(generated, Generated)
        assert generated.text == tokenizer.decode(whole[0, 1:], skip_special_tokens=True)
        texts.add(generated.text)
    assert len(texts) > 1
    scores = evaluator.score(answers)
    assert set(scores) == {"bits_per_byte", "exact_match", "chrf"}


def test_a_decoder_of_fewer_tokens_is_asked_within_them() -> None:
    """A translator whose languages have a vocabulary each."""
    each = ("encoder", "decoder")
    sizes = {f"{one}_{what}": 2 for one in each for what in ("layers", "attention_heads")}
    config = MarianConfig(
        vocab_size=100,
        decoder_vocab_size=20,
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
        d_model=16,
        max_position_embeddings=32,
        decoder_start_token_id=2,
        pad_token_id=1,
        **sizes,
    )
    torch.manual_seed(0)
    module: Any = MarianMTModel(config).eval()
    request = Loglikelihood((55, 99, 7), (8, 11, 12))
    (answer,) = Engine(Resident(module, tokenizer=None, max_length=32)).run([request])
    read = {"input_ids": [[55, 99, 7]], "decoder_input_ids": [[2, 8, 11]]}
    with torch.inference_mode():
        logits = module(**{name: torch.tensor(ids) for name, ids in read.items()}).logits
    wanted = logits[0].log_softmax(-1)[range(3), [8, 11, 12]].sum().item()
    assert isinstance(answer, Likelihood)
    assert answer.total == pytest.approx(wanted, abs=1e-5)


def test_beams_end_where_transformers_ends_them(bases: Path, write_lines: WriteLines) -> None:
    resident = opened(bases / "bart")
    resident.module.final_logits_bias[0, 2] = 2.5  # so that some end before they must
    evaluator = TextToText(resident.info, data=write_lines(ROWS), max_new_tokens=9, num_beams=4)
    answers = Engine(resident).run(evaluator.items.requests)
    tokenizer, lengths = resident.info.tokenizer, set()
    for row, answer in zip(ROWS, answers[1::2], strict=True):
        source = tokenizer(row["source"], return_tensors="pt").input_ids
        whole = resident.module.generate(source, max_new_tokens=9, num_beams=4, do_sample=False)
        assert isinstance(answer, Generated)
        assert answer.text == tokenizer.decode(whole[0, 1:], skip_special_tokens=True)
        lengths.add(len(whole[0]))
    assert min(lengths) < 10


def test_sources_that_are_cut_are_counted(
    bases: Path, write_lines: WriteLines, caplog: pytest.LogCaptureFixture
) -> None:
    info = opened(bases / "bart").info
    rows = [{"source": "x" * length, "target": "x"} for length in (126, 127, 200)]
    TextToText(info, data=write_lines(rows))
    assert "takes 128 tokens, of which 2 of 3 texts have more" in caplog.text


def test_padding_that_is_seen_is_noticed(
    bases: Path, write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that ignores its mask: rows go alone, and their answers stay the same."""
    resident = opened(bases / "t5")
    evaluator = TextToText(resident.info, data=write_lines(ROWS))
    expected = Engine(resident, batch_tokens=1).run(evaluator.items.requests)
    encoder = resident.module.get_encoder()
    own = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda **o: own(**{**o, "attention_mask": None}))
    engine = Engine(resident)
    resident.write({"shared.weight": torch.full_like(resident.tensor("shared.weight"), torch.nan)})
    with pytest.raises(EvaluationError):  # tells nothing of padding, and is still there
        engine.run(evaluator.items.requests)
    resident.write({})
    assert engine.run(evaluator.items.requests) == expected


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_choices_are_read_by_encoder_and_decoder(
    bases: Path, write_lines: WriteLines, kind: str
) -> None:
    rows = [
        {"question": sentence(i, 3), "choices": ["fox", "lazy dog"], "label": 1} for i in range(3)
    ]
    resident = opened(bases / kind)
    evaluator = MultipleChoice(resident.info, data=write_lines(rows), delimiter="")
    answers = Engine(resident).run(evaluator.items.requests)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(bases / kind).eval()
    tokenizer = resident.info.tokenizer
    for i, answer in enumerate(answers):
        source = tokenizer(rows[i // 2]["question"], return_tensors="pt").input_ids
        choice = tokenizer.encode(rows[i // 2]["choices"][i % 2], add_special_tokens=False)
        with torch.no_grad():
            loss = model(input_ids=source, labels=torch.tensor([choice])).loss
        assert isinstance(answer, Likelihood)
        assert answer.total == pytest.approx(-float(loss) * len(choice), rel=1e-5)


def test_a_population_is_scored_one_by_one(bases: Path, write_lines: WriteLines) -> None:
    resident = opened(bases / "t5")
    evaluator = TextToText(resident.info, data=write_lines(ROWS))
    draw = torch.Generator().manual_seed(0)
    name = "decoder.block.0.layer.1.EncDecAttention.k.weight"
    candidates = [
        {
            name: LowRankProduct(
                torch.randn(2, 32, generator=draw), torch.randn(32, 2, generator=draw)
            )
        }
        for _ in range(2)
    ]
    found = Engine(resident).run_population(evaluator.items.requests, candidates)
    for candidate, answers in zip(candidates, found, strict=True):
        written = opened(bases / "t5")
        written.write({n: written.tensor(n) + d.b @ d.a for n, d in candidate.items()})
        expected = Engine(written).run(evaluator.items.requests)
        assert isinstance(answers, list)
        assert [one.total for one in answers if isinstance(one, Likelihood)] == pytest.approx(
            [one.total for one in expected if isinstance(one, Likelihood)], rel=1e-5
        )


@pytest.mark.parametrize("request_", [Loglikelihood((5, 6), (7,)), Generate((5, 6), 3)])
def test_what_hears_alone_is_not_asked_in_text(whisper: Resident, request_: Request) -> None:
    with pytest.raises(ValueError, match=r"Whisper.* no logits .* given tokens alone"):
        Engine(whisper).run([request_])


def test_texts_alone_are_not_judged_by_an_encoder_decoder(
    bases: Path, llama: Resident, write_lines: WriteLines
) -> None:
    with pytest.raises(ValueError, match="needs a causal language model"):
        Perplexity(opened(bases / "t5").info, data=write_lines([{"text": "fox"}]))
    with pytest.raises(ValueError, match="needs an encoder-decoder"):
        TextToText(llama.info, data=write_lines(ROWS))


def test_what_is_heard_is_what_transformers_hears(
    bases: Path, tmp_path: Path, write_lines: WriteLines
) -> None:
    rows = sounds(tmp_path)
    resident = opened(bases / "whisper")
    evaluator = Transcription(resident.info, data=write_lines(rows), max_new_tokens=8)
    answers = Engine(resident).run(evaluator.items.requests)
    extractor = AutoFeatureExtractor.from_pretrained(bases / "whisper")
    model: Any = AutoModelForSpeechSeq2Seq.from_pretrained(bases / "whisper").eval()
    tokenizer = resident.info.tokenizer
    heard = []
    for i, row in enumerate(rows):
        with wave.open(str(tmp_path / row["audio"])) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        features = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features
        labels = torch.tensor([[*tokenizer.encode(row["text"]), tokenizer.eos_token_id]])
        with torch.no_grad():
            loss = model(input_features=features, labels=labels).loss
            whole = model.generate(input_features=features, max_new_tokens=8)
        likelihood, generated = answers[2 * i : 2 * i + 2]
        assert isinstance(likelihood, Likelihood)
        assert likelihood.total == pytest.approx(-float(loss) * labels.shape[1], rel=1e-4)
        assert isinstance(generated, Generated)
        heard.append(tokenizer.decode(whole[0], skip_special_tokens=True))
        assert generated.text == heard[-1]
    assert len(set(heard)) > 1
    scores = evaluator.score(answers)
    wrong = sum(
        edit_distance(re.sub(r"[^\w' ]|_", " ", h.lower()).split(), r["text"].split())
        for h, r in zip(heard, rows, strict=True)
    )
    assert scores["word_error_rate"].value == pytest.approx(wrong / sum(2 + i for i in range(4)))
    assert scores["word_error_rate"].cases is not None
    assert scores["word_error_rate"].cases.mean() == pytest.approx(scores["word_error_rate"].value)


def test_a_language_stays_in_its_task(
    bases: Path, tmp_path: Path, write_lines: WriteLines
) -> None:
    info, data = opened(bases / "whisper").info, write_lines(sounds(tmp_path, count=1))
    tokenizer = WhisperTokenizer(vocab=dict(info.tokenizer.get_vocab()), merges=[])
    tokens = "startoftranscript en zh translate transcribe notimestamps"
    special = [f"<|{token}|>" for token in tokens.split()]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    info = replace(info, tokenizer=tokenizer)

    def begin(**options: str) -> list[str]:
        asked = Transcription(info, data=data, max_new_tokens=8, **options).items.requests[0]  # type: ignore[arg-type]
        assert isinstance(asked, Loglikelihood)
        return [token.strip("<|>") for token in tokenizer.convert_ids_to_tokens(asked.context)]

    told = begin(language="chinese", task="translate")
    assert told == ["startoftranscript", "zh", "translate", "notimestamps"]
    assert begin() == ["startoftranscript", "notimestamps"]


def test_edit_distance_is_the_length_of_a_shortest_path() -> None:
    """Against a search through all texts of up to four words."""
    words = [tuple(t) for n in range(5) for t in np.ndindex(*(2,) * n)]
    neighbours = {
        one: {
            other
            for other in words
            if (
                len(one) == len(other)
                and sum(a != b for a, b in zip(one, other, strict=True)) == 1
            )
            or any(other == one[:i] + one[i + 1 :] for i in range(len(one)))
            or any(one == other[:i] + other[i + 1 :] for i in range(len(other)))
        }
        for one in words
    }
    start = (0, 1, 0)
    distances, edge = {start: 0}, [start]
    for one in edge:
        for other in neighbours[one] - distances.keys():
            distances[other] = distances[one] + 1
            edge.append(other)
    for other, expected in distances.items():
        assert edit_distance([*map(str, start)], [*map(str, other)]) == expected


def test_sounds_that_cannot_be_heard_are_refused(
    bases: Path, tmp_path: Path, write_lines: WriteLines
) -> None:
    info = opened(bases / "whisper").info
    with pytest.raises(ValueError, match="8000 samples a second, the model takes 16000"):
        Transcription(info, data=write_lines(sounds(tmp_path, 8000)), max_new_tokens=8)
    long = {"array": [0.0] * 16001, "sampling_rate": 16000}
    with pytest.raises(ValueError, match="16001 samples, the model takes 16000: cut it"):
        Transcription(info, data=write_lines([{"audio": long, "text": "a"}]), max_new_tokens=8)
    with pytest.raises(ValueError, match=r"gone\.wav does not exist"):
        Transcription(info, data=write_lines([{"audio": "gone.wav", "text": "a"}]))
    with pytest.raises(ValueError, match="leave no room"):
        Transcription(info, data=write_lines(sounds(tmp_path)), max_new_tokens=64)
    with pytest.raises(ValueError, match="sounds"):
        Transcription(opened(bases / "t5").info, data=write_lines(sounds(tmp_path)))
