"""What is remembered of a class is what it says; it is not asked, nor imported, again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from merging.checkpoints import naming
from merging.checkpoints.checkpoint import Checkpoint
from merging.weights import CheckpointError
from tests import builders
from tests.test_layers import ROOT

MADE: dict[str, Callable[..., Path]] = {
    "tied": lambda path: builders.llama(path, tie=True),
    "renamed": builders.gpt_neox,
    "classifier": builders.bert_classifier,
    "images": builders.vit_classifier,
}
MERGED = """
import sys
from pathlib import Path
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.methods.ties import Ties
from merging.plan import uniform_plan
from merging.saving.save import save_model

pool = ExpertPool.open("base", {"a": "a", "b": "b"})
pool.check_finite()
save_model(pool, uniform_plan(Ties(), Whole(), pool).weights(pool), Path(sys.argv[1]))
print(sorted({"transformers", "numba", "scipy", "sympy", "tokenizers"} & {*sys.modules}))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def said(checkpoint: Checkpoint) -> tuple[object, ...]:
    names = checkpoint.kind, checkpoint.aliases, checkpoint.prefix, checkpoint.unused
    return *names, list((checkpoint.file_names or {}).items()), checkpoint.described


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("kind", MADE)
def test_what_is_remembered_is_what_the_class_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, encoder: bool
) -> None:
    path = str(MADE[kind](tmp_path / "model"))
    asked = Checkpoint.open(path, encoder=encoder)
    monkeypatch.setattr(naming, "skeleton", lambda *_: pytest.fail("the class is asked again"))
    remembered = Checkpoint.open(path, encoder=encoder)
    assert said(remembered) == said(asked)
    monkeypatch.undo()
    assert set(remembered.module(dtype=asked.dtype(next(iter(asked))), device="cpu").state_dict())


def test_other_answers_are_not_taken(tmp_path: Path, cache: Path) -> None:
    """Of another configuration, of other tensors, or of a file that was damaged."""
    path = builders.llama(tmp_path / "model")
    before = said(Checkpoint.open(str(path)))
    for entry in (cache / "outlines").iterdir():
        entry.write_text(entry.read_text().replace("model.norm", "model.form"))
    assert said(Checkpoint.open(str(path))) == before
    other = shutil.copytree(path, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "intermediate_size": 4}))
    with pytest.raises(CheckpointError, match="has shape"):
        Checkpoint.open(str(other))
    tensors = load_file(path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*model\.norm\.weight"):
        Checkpoint.open(str(path))


def test_values_that_decide_what_is_tied_are_compared_every_time(tmp_path: Path) -> None:
    path = builders.llama(tmp_path / "tied", tie=True)
    file = path / "model.safetensors"
    tensors = load_file(file)
    for difference, tied in ((0, True), (1, False)):
        own = tensors["model.embed_tokens.weight"] + difference
        save_file({**tensors, "lm_head.weight": own}, file)
        assert ("lm_head.weight" in Checkpoint.open(str(path)).aliases) is tied


def test_a_small_merge_of_known_models_imports_neither_transformers_nor_numba(
    tmp_path: Path,
) -> None:
    base = builders.llama(tmp_path / "base", tie=True)
    for seed, name in enumerate("ab"):
        builders.llama(tmp_path / name, tie=True, like=base, seed=5 + seed, scale=0.02)
    shown = [
        subprocess.run(
            [sys.executable, "-c", MERGED, out],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for out in ("first", "second")
    ]
    assert "transformers" in shown[0]
    assert shown[1] == "[]"
    files = [tmp_path / out / "model.safetensors" for out in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()
