import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from merging.checkpoints.mechanisms import (
    GaussianMechanism,
    LaplaceMechanism,
    PrivacyRecordError,
    PureEpsilon,
    SparseVector,
)
from merging.checkpoints.privacy_record import (
    PrivacyRecord,
    PrivacySpend,
    read_record,
    sealed,
    unsealed,
    write_record,
)
from merging.weights import CheckpointError

POSITIVE = st.floats(1e-6, 1e3)
COUNT = st.integers(1, 10**6)
MECHANISMS = st.one_of(
    st.builds(GaussianMechanism, POSITIVE, st.floats(1e-6, 1), COUNT),
    *(st.builds(kind, POSITIVE, COUNT) for kind in (PureEpsilon, LaplaceMechanism, SparseVector)),
)
WORDS = st.text(min_size=1).filter(str.strip)
SPENDS = st.builds(
    PrivacySpend,
    dataset=WORDS,
    epsilon=st.floats(0, 1e3),
    delta=st.floats(0, 0.999),
    accountant=WORDS,
    accountant_version=WORDS,
    unit=WORDS,
    relation=st.sampled_from(["add_or_remove", "replace_one"]),
    mechanisms=st.none() | st.lists(MECHANISMS, min_size=1, max_size=3).map(tuple),
    group_size=st.integers(1, 100),
    disjoint_from=st.lists(st.just("\x00other"), max_size=1).map(tuple),
    release=st.none() | st.text(),
)


def spend(**changes: Any) -> PrivacySpend:
    values: dict[str, Any] = {"dataset": "tickets", "epsilon": 8.0, "delta": 1e-5}
    return PrivacySpend(**{**values, "accountant": "rdp", "accountant_version": "1", **changes})


def written(directory: Path, weights: str = "model", record: PrivacyRecord | None = None) -> Path:
    """Makes a checkpoint or adapter of one tensor with a record; returns its directory."""
    directory.mkdir(exist_ok=True)
    config = "adapter_config.json" if weights == "adapter_model" else "config.json"
    (directory / config).write_text("{}")
    save_file({"w": torch.ones(2)}, directory / f"{weights}.safetensors")
    write_record(directory, record or PrivacyRecord((spend(),)), words=["in words"])
    return directory


class TestRoundTrip:
    @given(st.lists(SPENDS, max_size=3), st.lists(st.text(), max_size=2))
    def test_through_json(self, spends: list[PrivacySpend], unrecorded: list[str]) -> None:
        record = PrivacyRecord(tuple(spends), tuple(unrecorded))
        assert PrivacyRecord.from_json(json.loads(json.dumps(record.to_json()))) == record

    @pytest.mark.parametrize("weights", ["model", "adapter_model"])
    def test_through_a_file(self, tmp_path: Path, weights: str) -> None:
        record = PrivacyRecord(
            (spend(mechanisms=(GaussianMechanism(1.0, 0.01, 300), SparseVector(0.5))),),
            ("expert 'code'",),
        )
        assert read_record(written(tmp_path / "expert", weights, record)) == record
        assert sorted(p.name for p in (tmp_path / "expert").iterdir())[-1] == "privacy.json"

    def test_of_statistics(self, tmp_path: Path) -> None:
        for name in ("gram-1", "gram-2"):
            save_file({"w": torch.ones(2)}, tmp_path / f"{name}.safetensors")
        write_record(tmp_path, PrivacyRecord((spend(),)))
        assert read_record(tmp_path) == PrivacyRecord((spend(),))
        save_file({"w": torch.zeros(2)}, tmp_path / "gram-2.safetensors")
        with pytest.raises(PrivacyRecordError, match="was written for weights"):
            read_record(tmp_path)

    def test_no_file(self, tmp_path: Path) -> None:
        assert read_record(tmp_path) is None


class TestRefusals:
    """Every message names the file, and is one sentence."""

    @pytest.fixture
    def expert(self, tmp_path: Path) -> Path:
        return written(tmp_path / "expert")

    def refuse(self, expert: Path, pattern: str) -> None:
        with pytest.raises(PrivacyRecordError, match=pattern) as caught:
            read_record(expert)
        assert str(caught.value).startswith(str(expert / "privacy.json"))
        assert isinstance(caught.value, CheckpointError)

    def rewrite(self, expert: Path, **changes: Any) -> None:
        """Changes keys and seals the file anew, as a faulty writer would."""
        path = expert / "privacy.json"
        content = unsealed(json.loads(path.read_text())) | changes
        kept = {key: value for key, value in content.items() if value is not ...}
        path.write_text(json.dumps(sealed(kept)))

    def test_edited(self, expert: Path) -> None:
        text = (expert / "privacy.json").read_text()
        assert '"epsilon": 8.0' in text
        (expert / "privacy.json").write_text(text.replace('"epsilon": 8.0', '"epsilon": 1.0'))
        self.refuse(expert, r"it was edited after it was written, .*: restore the file")

    def test_of_other_weights(self, expert: Path, tmp_path: Path) -> None:
        save_file({"w": torch.zeros(2)}, expert / "model.safetensors")
        self.refuse(expert, "was written for weights .*, beside it lie .*: a record holds for no")

    def test_beside_no_weights(self, expert: Path, tmp_path: Path) -> None:
        bare = tmp_path / "bare"
        bare.mkdir()
        shutil.copy(expert / "config.json", bare)
        shutil.copy(expert / "privacy.json", bare)
        with pytest.raises(CheckpointError, match=r"bare.* holds no weights"):
            read_record(bare)

    def test_no_json(self, expert: Path) -> None:
        (expert / "privacy.json").write_text("{")
        self.refuse(expert, "cannot be read .*: restore the file")

    @pytest.mark.parametrize("text", ["[]", "{}", '{"sha256": 3}', "null"])
    def test_no_record(self, expert: Path, text: str) -> None:
        (expert / "privacy.json").write_text(text)
        self.refuse(expert, "this is no privacy record of evomerge")

    @pytest.mark.parametrize(
        ("changes", "pattern"),
        [
            ({"format": 2}, "format 2 is not 1: read it with the version"),
            ({"spends": ...}, "file: 'spends' is missing"),
            ({"more": 1}, "file: 'more' is unknown, expected format, weights"),
            ({"spends": {}}, "spends must be a list"),
            ({"spends": [3]}, "spend: expected a JSON object, got 3"),
            ({"unrecorded": [3]}, "unrecorded holds something of another kind"),
        ],
    )
    def test_malformed_file(self, expert: Path, changes: dict[str, Any], pattern: str) -> None:
        self.rewrite(expert, **changes)
        self.refuse(expert, pattern)

    @pytest.mark.parametrize(
        ("changes", "pattern"),
        [
            ({"epsilon": ...}, "spend: 'epsilon' is missing"),
            ({"eps": 1}, "spend: 'eps' is unknown, expected dataset, epsilon"),
            ({"epsilon": -1}, "epsilon must be a finite number of at least 0, got -1"),
            ({"epsilon": "8"}, "epsilon must be a finite number of at least 0, got '8'"),
            ({"epsilon": True}, "epsilon must be a finite number"),
            ({"delta": 1}, r"delta must be in \[0, 1\), got 1"),
            ({"dataset": " "}, "dataset must be text that is not empty"),
            ({"unit": None}, "unit must be text"),
            ({"relation": "any"}, "relation must be add_or_remove or replace_one, got 'any'"),
            ({"group_size": 0}, "group_size must be a whole number of at least 1, got 0"),
            ({"group_size": 1.5}, "group_size must be a whole number"),
            ({"release": 3}, "release must be text or null"),
            ({"disjoint_from": "hr"}, "disjoint_from must be a list"),
            ({"disjoint_from": [3]}, "disjoint_from holds something of another kind"),
            ({"disjoint_from": ["tickets"]}, "'tickets' is declared disjoint from itself"),
            ({"mechanisms": {}}, "mechanisms must be a list"),
            (
                {"mechanisms": [{"kind": "magic"}]},
                "must have a kind of gaussian, discrete_gaussian, pure",
            ),
            ({"mechanisms": [{"kind": ["a"]}]}, "must have a kind of"),
            ({"mechanisms": [{"kind": "pure", "epsilon": 1}]}, "mechanism pure: 'count' is miss"),
        ],
    )
    def test_malformed_spend(self, expert: Path, changes: dict[str, Any], pattern: str) -> None:
        content = spend().to_json() | changes
        self.rewrite(expert, spends=[{k: v for k, v in content.items() if v is not ...}])
        self.refuse(expert, pattern)

    @pytest.mark.parametrize(
        ("mechanism", "pattern"),
        [
            (lambda: GaussianMechanism(0.0), "noise_multiplier must be above 0"),
            (lambda: GaussianMechanism(float("inf")), "noise_multiplier must be a finite number"),
            (lambda: GaussianMechanism(1.0, 1.5), r"sampling_rate must be in \(0, 1\], got 1.5"),
            (lambda: GaussianMechanism(1.0, 0.1, 0), "steps must be a whole number of at least 1"),
            (lambda: LaplaceMechanism(0.0), "epsilon must be above 0"),
            (lambda: SparseVector(1.0, True), "count must be a whole number"),
        ],
    )
    def test_mechanisms(self, mechanism: Any, pattern: str) -> None:
        with pytest.raises(PrivacyRecordError, match=pattern):
            mechanism()
