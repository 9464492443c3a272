"""Experts that read other tokens or images than the base are told, by the files beside weights."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.inputs import differences
from tests import builders


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def reverse_ids(path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        ids = [vocabulary[token] for token in list(vocabulary)[3:]]
        vocabulary.update(zip(list(vocabulary)[3:], reversed(ids), strict=True))

    edit(path / "tokenizer.json", change)


def rename_token(path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["<|im_start|>"] = vocabulary.pop(next(reversed(vocabulary)))

    edit(path / "tokenizer.json", change)


def older_files(path: Path) -> None:
    """What the base has in other words: nothing to say."""
    edit(path / "tokenizer.json", lambda c: c.update(version="0.9"))
    tokens = {"eos_token": {"content": "</s>", "lstrip": False}, "pad_token": "<s>"}
    edit(path / "tokenizer_config.json", lambda c: c.pop("eos_token"))
    (path / "special_tokens_map.json").write_text(json.dumps(tokens))


CASES: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "the same": (lambda path: None, None),
    "other words": (older_files, None),
    "no tokenizer": (lambda path: (path / "tokenizer.json").unlink(), None),
    "ids": (reverse_ids, r"other ids for 256 of the base's tokens \('.+' is 258, to the base 3\)"),
    "names": (rename_token, r"other tokens at 1 of the base's ids \('<\|im_start\|>' for '.'\)"),
    "end": (
        lambda path: edit(path / "tokenizer_config.json", lambda c: c.update(eos_token="a")),
        r"eos_token 'a', the base '</s>'",
    ),
    "end of generation": (
        lambda path: edit(
            path / "generation_config.json", lambda c: c.update(eos_token_id=[2, 5])
        ),
        r"eos_token_id \[2, 5\], the base \[2\]",
    ),
    "template": (
        lambda path: (path / "chat_template.jinja").write_text("{{ messages }}"),
        "a chat template that is not the base's",
    ),
    "template of an older release": (
        lambda path: edit(path / "tokenizer_config.json", lambda c: c.update(chat_template="{{")),
        "a chat template that is not the base's",
    ),
    "splitting": (
        lambda path: edit(
            path / "tokenizer.json", lambda c: c["pre_tokenizer"].update(add_prefix_space=True)
        ),
        "another pre_tokenizer",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_what_an_expert_reads_otherwise_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str, kind: str
) -> None:
    base = builders.llama(tmp_path / "base")
    if kind == "model":
        expert = shutil.copytree(base, tmp_path / "expert")
    else:
        expert = builders.lora_adapter(tmp_path / "expert", base)
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(base / file, expert)
    change, wanted = CASES[case]
    change(expert)
    ExpertPool.open(str(base), {"e": str(expert)})
    told = [text for text in caplog.messages if "tokenizer, template" in text]
    assert len(told) == (wanted is not None)
    if wanted is not None:
        assert re.match(rf"expert 'e' \(.+\) has {wanted}; tokenizer", told[0])


def test_images_are_prepared_as_the_base_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = builders.vit_classifier(tmp_path / "base", encoder=True)
    expert = builders.vit_classifier(tmp_path / "expert", like=base)
    same = builders.vit_classifier(tmp_path / "same", like=base)
    file = "preprocessor_config.json"
    edit(same / file, lambda c: c.update(size=8, image_processor_type="ViTFeatureExtractor"))
    edit(expert / file, lambda c: c.update(image_mean=[0.1, 0.1, 0.1]))
    ExpertPool.open(str(base), {"e": str(expert), "same": str(same)})
    (told,) = [text for text in caplog.messages if "preprocessing" in text]
    assert told.startswith("expert 'e' (")
    assert f"{file} with another image_mean;" in told


def test_a_tokenizer_in_an_unknown_form_is_no_end_of_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = builders.llama(tmp_path / "base")
    expert = shutil.copytree(base, tmp_path / "expert")
    edit(expert / "tokenizer.json", lambda c: c.update(model={"vocab": [3, 4]}))
    ExpertPool.open(str(base), {"e": str(expert)})
    assert "unknown form" in caplog.text


def test_modules_behind_an_encoder_are_compared(tmp_path: Path) -> None:
    base = builders.sentence_encoder(tmp_path / "base")
    expert = builders.sentence_encoder(tmp_path / "expert", like=base, seed=1)
    assert list(differences(base, expert)) == []
    (expert / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert list(differences(base, expert)) == ["another 1_Pooling behind its encoder"]
