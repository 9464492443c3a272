"""Pseudonyms: their definition, what of a record they replace, and that the key stays secret."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import multiprocessing
import pickle
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.memorization.canaries import Canary, read_canaries
from experiments.cli import main
from experiments.pseudonyms.pseudonymize import read_fields, read_key
from experiments.pseudonyms.pseudonyms import Pseudonyms, SecretKey, slugged
from experiments.pseudonyms.register import register

KEY = "a key that is long enough: 71c3"
FIELDS = {"asset.host": "HOSTNAME", "asset.ips": "IP_ADDRESS", "scan.target": "IP_ADDRESS"}
RECORD: dict[str, Any] = {
    "id": 7,
    "asset": {"host": "web-01", "ips": ["10.0.0.1", "10.0.0.12"], "os": None},
    "scan": [{"target": "10.0.0.1"}, {"target": None}, {"target": ""}],
    "note": "web-01 answers on 10.0.0.1:443, not on 10.0.0.12 or xweb-01 or 10.0.0.13.",
}


def pseudonyms(digits: int = 8) -> Pseudonyms:
    return Pseudonyms(SecretKey(KEY.encode()), digits=digits)


def expected(kind: str, value: str, digits: int = 8) -> str:
    found = hmac.new(KEY.encode(), f"{kind}:{value}".encode(), hashlib.sha256).hexdigest()
    return f"[{kind}_{found[:digits]}]"


def alike(one: int, other: int) -> bool:
    first, second = (expected("HOSTNAME", f"h{value}", 1) for value in (one, other))
    return first == second


@given(st.sampled_from(["HOSTNAME", "IP_ADDRESS"]), st.text(max_size=20), st.integers(12, 64))
@settings(max_examples=50, deadline=None)
def test_slug_is_the_keyed_hash_of_type_and_value(kind: str, value: str, digits: int) -> None:
    assert pseudonyms(digits).slug(kind, value) == expected(kind, value, digits)


def test_slugs_depend_on_key_type_and_value() -> None:
    mine = pseudonyms()
    assert (
        mine.slug("HOSTNAME", "a")
        == mine.slug("HOSTNAME", "a")
        == pseudonyms().slug("HOSTNAME", "a")
    )
    other = Pseudonyms(SecretKey(b"another key of 16 bytes"))
    slugs = [each.slug(k, v) for each in (mine, other) for k in ("A", "B") for v in ("a", "b")]
    assert len({slug[-9:] for slug in slugs}) == 8


def test_record_is_rewritten_in_the_named_fields_alone() -> None:
    before = copy.deepcopy(RECORD)
    changed = pseudonyms().record(RECORD, FIELDS)
    first, second = expected("IP_ADDRESS", "10.0.0.1"), expected("IP_ADDRESS", "10.0.0.12")
    assert before == RECORD
    assert changed == {
        "id": 7,
        "asset": {"host": expected("HOSTNAME", "web-01"), "ips": [first, second], "os": None},
        "scan": [{"target": first}, {"target": None}, {"target": ""}],
        "note": RECORD["note"],
    }


def test_keys_may_have_dots() -> None:
    changed = pseudonyms().record({"a.b": {"c.d": "v"}, "a": {"b": "v"}}, {"a.b.c.d": "KIND"})
    assert changed == {"a.b": {"c.d": expected("KIND", "v")}, "a": {"b": "v"}}


def test_everywhere_also_rewrites_other_texts() -> None:
    other = {"asset": {"host": "db", "ips": []}, "note": "see web-01, DB and db_2 (db)"}
    changed = pseudonyms().records([RECORD, other], FIELDS, everywhere=True)
    web, db = expected("HOSTNAME", "web-01"), expected("HOSTNAME", "db")
    first, second = expected("IP_ADDRESS", "10.0.0.1"), expected("IP_ADDRESS", "10.0.0.12")
    note = f"{web} answers on {first}:443, not on {second} or xweb-01 or 10.0.0.13."
    assert changed[0]["note"] == note
    assert changed[1]["note"] == f"see {web}, DB and db_2 ({db})"
    assert [pseudonyms().record(each, FIELDS)["asset"] for each in (RECORD, other)] == [
        each["asset"] for each in changed
    ]


def test_type_of_a_value_of_two_types_follows_the_fields_order() -> None:
    record = {"name": "x1", "host": "x1", "note": "x1"}
    for fields in ({"name": "NAME", "host": "HOST"}, {"host": "HOST", "name": "NAME"}):
        (changed,) = pseudonyms().records([record], fields, everywhere=True)
        kind = next(iter(fields.values()))
        assert changed == {
            "name": expected("NAME", "x1"),
            "host": expected("HOST", "x1"),
            "note": expected(kind, "x1"),
        }


def test_what_cannot_be_replaced_is_refused() -> None:
    with pytest.raises(ValueError, match="field 'asset' holds dict, pseudonyms are made of texts"):
        pseudonyms().record(RECORD, {"asset": "HOSTNAME"})
    with pytest.raises(ValueError, match="field 'id' holds int"):
        pseudonyms().record(RECORD, {"id": "NUMBER"})
    with pytest.raises(ValueError, match=r"no record holds a text at 'asset\.hots': correct"):
        pseudonyms().records([RECORD], {"asset.hots": "HOSTNAME"})
    with pytest.raises(ValueError, match="type 'host name' must be of capital letters"):
        pseudonyms().slug("host name", "a")
    for digits in (0, 65):
        with pytest.raises(ValueError, match=f"digits must be 1 to 64, got {digits}"):
            pseudonyms(digits)


def test_collisions_are_refused_without_naming_values() -> None:
    mine = pseudonyms(1)
    values = [f"secret{i}" for i in range(17)]  # more values than slugs
    message = r"two values of type KIND have .*: take more than 1 digits"
    with pytest.raises(ValueError, match=message) as error:
        [mine.slug("KIND", value) for value in values]
    assert "secret" not in str(error.value)
    longer = pseudonyms(12)
    assert len({longer.slug("KIND", value) for value in values}) == 17


def in_turns(start: Any, results: Any, name: str) -> None:
    """Claims all 16 slugs of one digit, of 16 types, for values that the other has not."""
    for number in range(16):
        start.wait()
        with register(SecretKey(KEY.encode())) as claim:
            mine = Pseudonyms(SecretKey(KEY.encode()), digits=1, claim=claim)
            for value in range(200):
                try:
                    results.put(mine.slug(f"K{number}", f"{name}{value}"))
                except ValueError:
                    continue


def test_two_processes_never_give_one_slug_to_two_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_STATE", str(tmp_path))
    forking = multiprocessing.get_context("fork")
    start, results = forking.Barrier(2), forking.Queue()
    workers = [forking.Process(target=in_turns, args=(start, results, name)) for name in "ab"]
    for worker in workers:
        worker.start()
    slugs = [results.get(timeout=60) for _ in range(16 * 16)]
    for worker in workers:
        worker.join()
    assert len(set(slugs)) == 16 * 16


def canary(number: int, kind: str = "HOSTNAME") -> Canary:
    text = f'{{"host":"h{number}","port":80}}'
    return Canary(f"c{number}", text, 9, 11, ("v1", "v2"), "AB"[number % 2], kind)


def test_dual_attack_slugs_all_canaries_and_variants() -> None:
    canaries = [canary(i) for i in range(4)]
    attacked = slugged(canaries, pseudonyms())
    assert [each.group for each in attacked] == ["A", "B", "A", "B"]  # class B is not lost
    for before, after in zip(canaries, attacked, strict=True):
        assert after.value == expected("HOSTNAME", before.value)
        assert after.variants == (expected("HOSTNAME", "v1"), expected("HOSTNAME", "v2"))
        assert after.record("x") == before.record("x")
    with pytest.raises(ValueError, match="canary 'c1' has no kind, so that its slug is unknown"):
        slugged([canary(0), canary(1, kind="")], pseudonyms())


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_text(json.dumps(RECORD) + "\n")
    (tmp_path / "fields.yaml").write_text("".join(f"{k}: {v}\n" for k, v in FIELDS.items()))
    lines = [json.dumps(canary(i).line()) for i in range(3)]
    (tmp_path / "canaries.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "broken.jsonl").write_text(json.dumps(canary(0, kind="").line()) + "\n")
    (tmp_path / "key").write_text(KEY + "\n")
    return tmp_path


def test_command_writes_records_and_canaries(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLUG_KEY", KEY)
    source, fields = str(files / "in.jsonl"), str(files / "fields.yaml")
    for number, key in enumerate((["--key-env", "SLUG_KEY"], ["--key-file", str(files / "key")])):
        out = files / f"out{number}.jsonl"
        options = ["--fields", fields, "--everywhere", *key]
        assert main(["pseudonymize", source, str(out), *options]) == 0
        (line,) = out.read_text().splitlines()
        assert json.loads(line) == pseudonyms().records([RECORD], FIELDS, everywhere=True)[0]
    assert capsys.readouterr().out.count("1 lines") == 2
    out = files / "slugs.jsonl"
    options = ["--canaries", "--key-env", "SLUG_KEY", "--digits", "12"]
    assert main(["pseudonymize", str(files / "canaries.jsonl"), str(out), *options]) == 0
    assert read_canaries(out) == slugged([canary(i) for i in range(3)], pseudonyms(12))


def test_two_files_under_a_key_never_share_a_slug(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVOMERGE_STATE", str(files / "state"))
    one, other = next(pair for pair in combinations(range(99), 2) if alike(*pair))
    (files / "fields.yaml").write_text("host: HOSTNAME")
    options = ["--fields", str(files / "fields.yaml"), "--key-file", str(files / "key")]
    for number, value in ((0, one), (1, other), (2, one)):
        source = files / f"in{number}.jsonl"
        source.write_text(json.dumps({"host": f"h{value}"}) + "\n")
        command = ["pseudonymize", str(source), str(files / f"out{number}.jsonl"), *options]
        if number == 1:
            with pytest.raises(SystemExit, match="2"):
                main([*command, "--digits", "1"])
            assert "two values of type HOSTNAME have the slug" in capsys.readouterr().err
        else:
            main([*command, "--digits", "1"])
    assert (files / "out0.jsonl").read_text() == (files / "out2.jsonl").read_text()
    (kept,) = (files / "state").iterdir()
    assert f"h{one}" not in kept.read_text()
    kept.write_bytes(b"damaged\n")
    with pytest.raises(SystemExit, match="2"):
        main([*command[:2], str(files / "out3.jsonl"), *options])
    assert f"{kept} is damaged, which says" in capsys.readouterr().err


def test_key_shows_nowhere(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLUG_KEY", KEY)
    source, fields = str(files / "in.jsonl"), str(files / "fields.yaml")
    (files / "key").unlink()
    known = ["pseudonymize", source, str(files / "out.jsonl"), "--key-env", "SLUG_KEY"]
    assert main([*known, "--fields", fields]) == 0
    broken = ["pseudonymize", str(files / "broken.jsonl"), str(files / "out2.jsonl")]
    for wrong in (
        [*known, "--fields", fields],  # exists
        [*known[:2], str(files / "new.jsonl"), *known[3:], "--fields", source],
        [*known[:2], str(files / "new.jsonl"), *known[3:], "--fields", fields, "--digits", "0"],
        [*broken, "--canaries", "--key-env", "SLUG_KEY"],
    ):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
    shown = capsys.readouterr()
    texts = [shown.out, shown.err, *(f.read_text() for f in files.iterdir() if f.is_file())]
    secret = SecretKey(KEY.encode())
    texts += [
        repr(secret),
        str(secret),
        f"{secret}",
        repr(Pseudonyms(secret)),
        repr(vars(Pseudonyms(secret))),
    ]
    for text in texts:
        assert KEY not in text
        assert KEY.encode().hex() not in text
    with pytest.raises(TypeError, match="a Secret is not to be written anywhere"):
        pickle.dumps(secret)
    with pytest.raises(TypeError, match="a Secret is not to be written anywhere"):
        copy.deepcopy(secret)
    short = "elevenbytes"
    with pytest.raises(ValueError, match="the key has fewer than 16 bytes") as error:
        SecretKey(short.encode())
    assert short not in str(error.value)


def test_sources_of_the_key_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="environment variable NONE is not set: put the key"):
        read_key(variable="NONE", file=None, environment={})
    with pytest.raises(ValueError, match=r"key file .* does not exist: correct its path"):
        read_key(variable=None, file=tmp_path / "none", environment={})
    with pytest.raises(ValueError, match="name the key's environment variable or its file, one"):
        read_key(variable=None, file=None, environment={})


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: 3\n", "{}", "a: ''\n"])
def test_fields_are_a_mapping(tmp_path: Path, content: str) -> None:
    (tmp_path / "fields.yaml").write_text(content)
    with pytest.raises(ValueError, match="must map fields to types, for example"):
        read_fields(tmp_path / "fields.yaml")


def test_fields_are_yaml(tmp_path: Path) -> None:
    (tmp_path / "fields.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is neither YAML nor JSON"):
        read_fields(tmp_path / "fields.yaml")


def test_everywhere_is_for_records(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUG_KEY", KEY)
    command = ["pseudonymize", str(files / "canaries.jsonl"), str(files / "o.jsonl"), "--canaries"]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--everywhere", "--key-env", "SLUG_KEY"])
    assert not (files / "o.jsonl").exists()
