"""Synthetic scans: formats, canaries, both attacks' files, and determinism."""

from __future__ import annotations

import ipaddress
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from evaluators.evaluator import ModelInfo
from evaluators.memorization.canaries import read_canaries
from evaluators.requests import Likelihood, Loglikelihood
from experiments.papers.csirt.bands import ANSWERS, BandQuestions
from experiments.papers.csirt.catalogue import BANDS, FLAWS, catalogue
from experiments.papers.csirt.corpus import CorpusSize, canary_of, make_corpus, pretraining_records
from experiments.papers.csirt.files import DataFiles, write_files
from experiments.papers.csirt.pseudonymised import pseudonymised, pseudonyms_of
from experiments.papers.csirt.records import FIELD_OF, question_of, scans, span_of, text_of
from experiments.papers.csirt.tokenizer import record_tokenizer
from experiments.papers.csirt.values import KINDS, candidates

SIZE = CorpusSize(records=40, canaries=2, clones=3, variants=12, held_out=8)


def test_training_records_hold_every_canary_as_often_as_asked() -> None:
    corpus = make_corpus(SIZE, 7)
    assert len(corpus.training) == 40 + 20 * 3
    texts = [text_of(record) for record in corpus.training]
    for secret in corpus.secrets:
        assert sum(f'"{secret.value}"' in text for text in texts) == 3, secret.name
        assert not any(f'"{value}"' in text for value in secret.variants for text in texts)
    held = {text_of(record) for records in corpus.held_out.values() for record in records}
    assert len(held) == 24
    assert not held & set(texts)


def test_halves_of_the_canaries_hold_every_class_and_kind() -> None:
    secrets = make_corpus(SIZE, 0).secrets
    kinds = [(secret.cls, secret.kind) for secret in secrets]
    assert len(set(kinds[:10])) == len(set(kinds[10:])) == 10
    values = [value for secret in secrets for value in (secret.value, *secret.variants)]
    assert len(set(values)) == len(values), "no variant of one canary is planted as another"


def test_classes_have_their_formats() -> None:
    draw = random.Random(0)
    documentation = [ipaddress.ip_network(f"{net}.0/24") for net in ("192.0.2", "198.51.100")]
    documentation.append(ipaddress.ip_network("203.0.113.0/24"))
    for value in candidates("ipv4", "A", 50, draw):
        assert any(ipaddress.ip_address(value) in net for net in documentation)
    for value in candidates("ipv6", "A", 50, draw):
        assert ipaddress.ip_address(value) in ipaddress.ip_network("2001:db8::/32")
    for kind in ("ipv4", "ipv6"):
        assert all(ipaddress.ip_address(v).is_private for v in candidates(kind, "B", 50, draw))
    assert all(v.startswith("canary-") for v in candidates("name", "A", 50, draw))
    pattern = re.compile(r"[A-Z]{2,5}-[A-Z]{3}-\d{4}")
    assert all(pattern.fullmatch(v) for v in candidates("name", "B", 50, draw))
    assert all(len(v.split(":")) == 6 for v in candidates("mac", "B", 50, draw))
    for kind in KINDS:
        assert len(set(candidates(kind, "A", 202, draw))) == 202


def test_data_depends_on_the_seed_alone() -> None:
    assert make_corpus(SIZE, 3) == make_corpus(SIZE, 3)
    assert make_corpus(SIZE, 3) != make_corpus(SIZE, 4)
    known = make_corpus(SIZE, 42)
    assert known.secrets[0].value == "203.0.113.62", "the same on every machine"


def test_bands_are_balanced_and_need_product_and_flaw() -> None:
    plugins = catalogue("site", 48)
    assert catalogue("site", 48) == plugins
    records = scans(plugins, 80, random.Random(0), copies=False)
    assert [sum(r["severity"] == band for r in records) for band in BANDS] == [20] * 4
    for plugin in plugins:
        low, high = ((0, 4), (4, 7), (7, 9), (9, 10.1))[plugin.band]
        assert low <= plugin.score < high
    flaws = {plugin.name.partition(" ")[2] for plugin in plugins}
    of_flaw = {f: {p.band for p in plugins if p.name.endswith(f" {f}")} for f in flaws}
    assert all(len(bands) > 1 for bands in of_flaw.values())


def test_a_base_sees_neither_the_flaws_of_the_site_nor_a_canary() -> None:
    flaws = [flaw for flaws in FLAWS["site"] for flaw in flaws]
    records = pretraining_records(SIZE, 400)
    assert not any(flaw in text_of(record) for flaw in flaws for record in records)
    values = {value for record in records for value in record["asset"].values()}
    assert not values & {secret.value for secret in make_corpus(SIZE, 0).secrets}


def test_question_ends_behind_the_key_of_the_score() -> None:
    record = make_corpus(SIZE, 0).held_out["report"][0]
    text, behind = question_of(record)
    assert text.endswith('"base_score":')
    assert behind == '},"description":"'
    score = record["definition"]["cvss2"]["base_score"]
    assert text_of(record).startswith(f"{text}{score}{behind}")


@pytest.mark.parametrize("copies", [False, True])
def test_span_is_the_value_and_tokens_round_trip(copies: bool) -> None:
    tokenizer = record_tokenizer(512)
    for record in scans(catalogue("site", 48), 8, random.Random(0), copies=copies):
        for kind in KINDS:
            start, end = span_of(record, kind)
            assert text_of(record)[start:end] == record["asset"][FIELD_OF[kind]]
        ids = tokenizer.encode(text_of(record))
        assert tokenizer.decode(ids) == text_of(record)
        assert len(ids) < 250


def test_pseudonyms_replace_every_identifier_and_keep_equality() -> None:
    record = scans(catalogue("site", 48), 1, random.Random(0), copies=True)[0]
    hidden = pseudonymised(record, pseudonyms_of(0))
    text = text_of(hidden)
    for field in FIELD_OF.values():
        assert record["asset"][field] not in text
    assert hidden["scan"]["target"] == hidden["asset"]["display_ipv4_address"]
    assert hidden["asset"]["display_fqdn"] == hidden["asset"]["host_name"]
    assert hidden["definition"] == record["definition"]
    assert text_of(pseudonymised(record, pseudonyms_of(1))) != text


def test_files_hold_both_attacks_on_all_canaries(tmp_path: Path) -> None:
    corpus = make_corpus(SIZE, 0)
    for form in ("raw", "pseudonymised"):
        (tmp_path / form).mkdir()
        write_files(tmp_path / form, corpus, 0, form)
    raw, hidden = DataFiles(tmp_path / "raw"), DataFiles(tmp_path / "pseudonymised")
    assert not raw.slugs.exists()
    first, second = read_canaries(hidden.canaries), read_canaries(hidden.slugs)
    assert [c.value for c in first] == [c.value for c in read_canaries(raw.canaries)]
    assert [c.value for c in first] == [secret.value for secret in corpus.secrets]
    assert len(second) == 20
    pseudonyms = pseudonyms_of(0)
    trained = " ".join(text_of(pseudonymised(r, pseudonyms)) for r in corpus.training)
    for canary in second:
        assert re.fullmatch(r"\[[A-Z_]+_[0-9a-f]{8}\]", canary.value)
        assert trained.count(canary.value) >= 3, "the slug that is attacked was trained on"
        assert not any(variant in trained for variant in canary.variants)
    members = [json.loads(line) for line in raw.members.read_text().splitlines()]
    assert sum(each["member"] for each in members) == 20


def test_a_canary_is_read_in_a_held_out_record() -> None:
    corpus = make_corpus(SIZE, 0)
    canary = canary_of(corpus.secrets[0])
    assert canary.kind == "IP_ADDRESS"
    assert canary.text not in {text_of(record) for record in corpus.training}
    assert json.loads(canary.record(canary.variants[0]))["asset"]


def questions(tmp_path: Path, bands: list[int]) -> BandQuestions:
    path = tmp_path / "q.jsonl"
    lines = [{"text": f"{i} score:", "behind": "},", "band": b} for i, b in enumerate(bands)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return BandQuestions(ModelInfo(record_tokenizer(64), None, 64), data=str(path))


def test_band_questions_score_known_answers(tmp_path: Path) -> None:
    asked = questions(tmp_path, [0, 1, 2, 3])
    assert len(asked.items.requests) == 4 * len(ANSWERS)
    one = asked.items.requests[0]
    assert isinstance(one, Loglikelihood)
    answers = [0, 0, 2, 3]
    shares = [[0.7 if place == answer else 0.1 for place in range(4)] for answer in answers]
    responses = [Likelihood(float(np.log(p)) - 5, False) for row in shares for p in row]
    scores = asked.score(responses)
    assert scores["macro_f1"].value == pytest.approx((2 / 3 + 0 + 1 + 1) / 4)
    assert scores["accuracy"].value == 0.75
    assert scores["surprise"].value == pytest.approx(-(3 * np.log2(0.7) + np.log2(0.1)) / 4)
    part = asked.subset([3, 1])
    assert part.items.digests == (asked.items.digests[3], asked.items.digests[1])
    some = [responses[i] for place in (3, 1) for i in range(4 * place, 4 * place + 4)]
    scores = part.score(some)
    assert (scores["accuracy"].value, scores["macro_f1"].value) == (0.5, 0.25)  # of four bands


def test_data_without_meaning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.records=0"):
        CorpusSize(records=0)
    with pytest.raises(ValueError, match=r"data\.clones=5: .* the 4 organic records"):
        CorpusSize(records=4, clones=5)
    with pytest.raises(ValueError, match="band 4 is none of 0 to 3"):
        questions(tmp_path, [4])
