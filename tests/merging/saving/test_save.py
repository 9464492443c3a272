import json
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from merging.checkpoints import naming
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from merging.saving.save import save_model
from merging.weights import CheckpointError
from tests import builders

Weights = dict[str, torch.Tensor]


def mean(pool: ExpertPool) -> Weights:
    return {
        name: (pool.base_tensor(name).float() + pool.deltas(name).mean(0)).to(
            pool.base_tensor(name).dtype
        )
        for name in pool.names
    }


def opened(base: Path, n: int = 2) -> ExpertPool:
    return ExpertPool.open(str(base), builders.experts_of(base, n))


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "builder", [builders.llama, builders.qwen2, builders.gpt_neox, builders.gpt2]
)
@pytest.mark.parametrize("converted", [False, True])
def test_what_is_saved_is_what_loads(
    tmp_path: Path,
    builder: Callable[..., Path],
    converted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`converted`: as if transformers had to convert the tensors, not only rename them."""
    if converted:
        monkeypatch.setattr(naming, "match", lambda module, names: None)
    pool = opened(builder(tmp_path / "base"))
    merged = mean(pool)
    save_model(pool, merged, tmp_path / "out")
    state = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert set(state) == set(merged) | set(pool.base.aliases)
    for name, tensor in merged.items():
        assert torch.equal(state[name], tensor)
    again = Checkpoint.open(str(tmp_path / "out"))
    assert again.architecture is pool.base.architecture
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("a")["input_ids"] == again.tokenizer()("a")["input_ids"]  # type: ignore[misc]


def test_shards_load_and_stay_below_the_limit(tmp_path: Path) -> None:
    pool = opened(builders.llama(tmp_path / "base"))
    save_model(pool, mean(pool), tmp_path / "out", shard_bytes=40_000)
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert max(path.stat().st_size for path in shards) < 44_000
    merged = mean(pool)
    saved = Checkpoint.open(str(tmp_path / "out"))
    assert all(torch.equal(saved[name], merged[name]) for name in merged)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_tensors_are_computed_one_at_a_time(tmp_path: Path) -> None:
    pool = opened(builders.llama(tmp_path / "base"))
    asked: list[str] = []

    class Lazy(Mapping[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            asked.append(name)
            return pool.base_tensor(name) + 1

        def __iter__(self) -> Iterator[str]:
            return iter(pool.names)

        def __len__(self) -> int:
            return len(pool.names)

    save_model(pool, Lazy(), tmp_path / "out")
    assert sorted(asked) == sorted(pool.names)


def test_same_bytes_every_time(tmp_path: Path) -> None:
    pool = opened(builders.llama(tmp_path / "base"))
    for out in ("one", "two"):
        save_model(pool, mean(pool), tmp_path / out)
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.parametrize("asked", [None, torch.bfloat16])
def test_dtype_is_the_bases_or_the_asked_one_and_written_down(
    tmp_path: Path, asked: torch.dtype | None
) -> None:
    pool = opened(builders.llama(tmp_path / "base", dtype=torch.float16))
    save_model(pool, mean(pool), tmp_path / "out", dtype=asked)
    expected = asked or torch.float16
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == expected
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == str(expected).removeprefix("torch.")
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_only_what_adapters_touch_changes(tmp_path: Path) -> None:
    base = builders.llama(tmp_path / "base")
    adapter = builders.lora_adapter(tmp_path / "lora", base)
    pool = ExpertPool.open(str(base), {"lora": str(adapter)})
    save_model(pool, mean(pool), tmp_path / "out")
    saved = Checkpoint.open(str(tmp_path / "out"))
    changed = {name for name in saved if not torch.equal(saved[name], pool.base[name])}
    assert changed == set(pool.names)


def test_card_and_generation_settings(tmp_path: Path) -> None:
    pool = opened(builders.llama(tmp_path / "base"))
    save_model(pool, mean(pool), tmp_path / "plain")
    save_model(pool, mean(pool), tmp_path / "own", card="# Mine\n")
    card = (tmp_path / "plain/README.md").read_text()
    assert "- code: `base-code`" in card
    assert str(tmp_path) not in card  # a card may be published
    assert (tmp_path / "own/README.md").read_text() == "# Mine\n"
    assert (tmp_path / "own/generation_config.json").is_file()


@pytest.mark.parametrize("kind", ["encoder", "masked"])
def test_classifiers_become_an_encoder_and_a_whole_model_per_head(
    tmp_path: Path, kind: str
) -> None:
    base = builders.bert_classifier(tmp_path / "base", kind=kind)
    experts = {
        name: str(builders.bert_classifier(tmp_path / name, num_labels=n, like=base, seed=n))
        for name, n in [("topic", 4), ("mood", 2)]
    }
    pool = ExpertPool.open(str(base), experts)
    merged = mean(pool)
    save_model(pool, merged, tmp_path / "out")
    encoder = transformers.AutoModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(encoder[name], merged[name]) for name in merged)
    for name, labels in [("topic", 4), ("mood", 2)]:
        saved = Checkpoint.open(str(tmp_path / "out/heads" / name))
        own = Checkpoint.open(experts[name])
        assert saved.config.num_labels == labels
        assert all(torch.equal(saved[f"bert.{n}"], merged[n]) for n in merged)
        rest = [n for n in saved if n.removeprefix("bert.") not in merged]
        assert "classifier.weight" in rest
        assert all(torch.equal(saved[n], own[n]) for n in rest)
        transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "out/heads" / name
        )
        assert saved.tokenizer() is not None


def test_image_classifiers_keep_their_heads_and_processor(tmp_path: Path) -> None:
    base = builders.vit_classifier(tmp_path / "base", encoder=True)
    expert = builders.vit_classifier(tmp_path / "digits", num_labels=10, like=base)
    pool = ExpertPool.open(str(base), {"digits": str(expert)})
    save_model(pool, dict(pool.expert_weights("digits")), tmp_path / "out")
    transformers.AutoModel.from_pretrained(tmp_path / "out")
    head = tmp_path / "out/heads/digits"
    saved = transformers.AutoModelForImageClassification.from_pretrained(head).state_dict()
    own = transformers.AutoModelForImageClassification.from_pretrained(expert).state_dict()
    assert all(torch.equal(saved[name], own[name]) for name in own)
    transformers.AutoImageProcessor.from_pretrained(head)


class TestTargets:
    @pytest.fixture(scope="class")
    def pool(self, tmp_path_factory: pytest.TempPathFactory) -> ExpertPool:
        return opened(builders.llama(tmp_path_factory.mktemp("models") / "base"), 1)

    def test_empty_directory_is_taken(self, pool: ExpertPool, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        save_model(pool, mean(pool), tmp_path / "out")
        assert (tmp_path / "out/config.json").is_file()

    def test_parents_are_made(self, pool: ExpertPool, tmp_path: Path) -> None:
        save_model(pool, mean(pool), tmp_path / "a/b/out")
        assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["out"]

    def test_files_have_the_mode_that_the_umask_asks_for(
        self, pool: ExpertPool, tmp_path: Path
    ) -> None:
        mask = os.umask(0o027)
        try:
            save_model(pool, mean(pool), tmp_path / "out")
        finally:
            os.umask(mask)
        modes = {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "out").iterdir()}
        assert modes == {"0o640"}
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750

    def test_what_exists_is_never_replaced(self, pool: ExpertPool, tmp_path: Path) -> None:
        save_model(pool, mean(pool), tmp_path / "out", card="old")
        with pytest.raises(CheckpointError, match=r"out exists; choose another directory"):
            save_model(pool, mean(pool), tmp_path / "out")
        assert (tmp_path / "out/README.md").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_parent_that_is_a_file(self, pool: ExpertPool, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match=r"cannot write the model to .*file/out"):
            save_model(pool, mean(pool), tmp_path / "file/out")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_read_only_parent(self, pool: ExpertPool, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(CheckpointError, match=r"cannot write .*out \(Permission denied\)"):
            save_model(pool, mean(pool), tmp_path / "out")

    @pytest.fixture
    def small_disk(self) -> Iterator[None]:
        """No file may grow beyond 20 kB, as on a disk that fills up while weights are written."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @pytest.mark.usefixtures("small_disk")
    def test_full_disk_leaves_nothing_behind(self, pool: ExpertPool, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"cannot write .*out .*free space there"):
            save_model(pool, mean(pool), tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_any_failure_leaves_nothing_behind(self, pool: ExpertPool, tmp_path: Path) -> None:
        class Fails(dict[str, torch.Tensor]):
            def __getitem__(self, name: str) -> Any:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            save_model(pool, Fails(mean(pool)), tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_names_and_shapes_are_checked(self, pool: ExpertPool, tmp_path: Path) -> None:
        short = mean(pool)
        short.pop("lm_head.weight")
        with pytest.raises(CheckpointError, match=r"lack 1 tensors: lm_head\.weight"):
            save_model(pool, short, tmp_path / "out")
        with pytest.raises(CheckpointError, match=r"hold 1 tensors that the base .* lacks: other"):
            save_model(pool, mean(pool) | {"other": torch.ones(1)}, tmp_path / "out")
        with pytest.raises(
            CheckpointError, match=r"lm_head\.weight has shape \(1,\), .* has \(259"
        ):
            save_model(pool, mean(pool) | {"lm_head.weight": torch.ones(1)}, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
