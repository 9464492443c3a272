"""What is fetched of a repository, by the hub's own reading of patterns; no network."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from merging.checkpoints import sources

TEMPLATE = "additional_chat_templates/tool.jinja"
BESIDE = ("config.json", "README.md", "source.spm", TEMPLATE)
OTHERS = ("model.onnx", "onnx/model.onnx", "a/b.json")
SHARDED = {"pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"}
MODULES = ("modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors")


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ({"model.safetensors", "pytorch_model.bin"}, {"model.safetensors"}),
        ({"model.fp16.safetensors", "pytorch_model.bin"}, {"pytorch_model.bin"}),
        ({"adapter_model.safetensors", "adapter_config.json", "pytorch_model.bin"}, None),
        (SHARDED, None),
        (SHARDED | {"model.fp16.safetensors"}, SHARDED),
    ],
)
@pytest.mark.parametrize("modules", [(), MODULES])
def test_what_a_model_needs_is_fetched_and_no_more(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: set[str],
    wanted: set[str] | None,
    modules: tuple[str, ...],
) -> None:
    """An adapter beside a pickled model makes it no adapter, here as in a folder."""
    repository, here = tmp_path / "hub", tmp_path / "here"
    for name in (*BESIDE, *OTHERS, *weights, *modules):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("{}")
    if modules:
        listed = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]
        (repository / "modules.json").write_text(json.dumps(listed))

    def download(source: str, *, revision: Any, **patterns: Any) -> str:
        files = [str(p.relative_to(repository)) for p in repository.rglob("*") if p.is_file()]
        for name in filter_repo_objects(files, **patterns):
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, here / name)
        return str(here)

    monkeypatch.setattr(sources, "snapshot_download", download)
    assert sources.resolve("org/name") == here
    found = {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()}
    needed = {*BESIDE, *modules}
    assert needed | (weights if wanted is None else wanted) <= found
    assert not found & {*OTHERS}
    if wanted == {"model.safetensors"}:
        assert found == needed | wanted
