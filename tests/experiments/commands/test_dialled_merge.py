"""`evomerge merge target_epsilon=...`: what is written, rebuilt and refused."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from experiments.runs.starts import others, starts_file
from merging.checkpoints.mechanisms import GaussianMechanism
from merging.checkpoints.privacy_record import PrivacyRecord, PrivacySpend, write_record
from merging.checkpoints.weight_files import WeightFiles
from merging.privacy import accounting
from merging.privacy.composition import add
from tests.experiments.refusals import Shell

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason="needs the extra dp"
)
NOISE = {"code": 4.0, "prose": 2.0, "maths": 1.0}


def record(name: str, dataset: str = "tickets") -> PrivacyRecord:
    noise = (GaussianMechanism(NOISE[name]),)
    epsilon = accounting.epsilon(noise, 1e-5)
    spend = PrivacySpend(dataset, epsilon, 1e-5, "dp-accounting rdp", "1", mechanisms=noise)
    return PrivacyRecord((spend,))


@pytest.fixture(scope="module")
def line(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A merge of three experts with records on one data set, at epsilons 1.0, 2.2 and 4.7."""
    root = tmp_path_factory.mktemp("dialled")
    for name in ("base", *(f"base-{name}" for name in NOISE)):
        shutil.copytree(world / name, root / name)
    for name in NOISE:
        write_record(root / f"base-{name}", record(name))
    listed = ",".join(f"{name}:{root}/base-{name}" for name in NOISE)
    experts = [f"experts.base={root}/base", f"experts.experts={{{listed}}}", "device=cpu"]
    return ["merge", "experts=local", *experts, "method=linear"]


@pytest.mark.parametrize("way", ["selection", "combination"])
def test_the_merge_costs_at_most_the_target_and_is_rebuilt(
    shell: Shell, line: list[str], tmp_path: Path, way: str
) -> None:
    out, again, drawn = tmp_path / "merged", tmp_path / "again", way == "selection"
    starts_file().unlink(missing_ok=True)
    ended = shell.run(*line, f"dial={way}", "target_epsilon=4", f"out={out}")
    assert ended.code == 0, ended.stderr
    recipe = json.loads((out / "recipe.json").read_text())
    assert 2.2 < recipe["privacy"]["data_sets"]["tickets"]["epsilon"] <= 4
    assert recipe["privacy"]["data_sets"]["tickets"]["delta"] == 1e-5
    chosen = {"selection": [["prose"], ["maths"]], "combination": [["code", "prose"]]}[way]
    assert recipe["merged"] in chosen
    assert list(recipe["experts"]) == recipe["merged"]
    assert "one who sees this merge only" in (out / "README.md").read_text()
    spent = add(others("tickets", set()))  # a draw counts, whether its result is kept or not
    assert spent.epsilon == (recipe["privacy"]["spends"][0]["epsilon"] if drawn else 0)

    ended = shell.run("rebuild", str(out / "recipe.json"), "--out", str(again))
    assert ended.code == 0, ended.stderr
    for name in ("privacy.json", *(file.name for file in WeightFiles.find(out).files)):
        assert (out / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["target_epsilon=0.5"], "no expert costs epsilon=0.5 or less"),
        (["target_epsilon=4", "method=ties"], "give method=linear, and no knobs"),
        (["target_epsilon=4", "knobs={weight:{code:1}}"], "give method=linear, and no knobs"),
        (["target_epsilon=4", "dial=all"], "dial=all"),
        (["target_epsilon=-1"], "target_epsilon=-1"),
        (["dial=selection"], "dial=selection is of the privacy dial"),
        (["target_delta=1e-6"], "target_delta=1e-06 is of the privacy dial"),
        (["accountant=pld"], "accountant=pld is of the privacy dial"),
    ],
)
def test_what_cannot_be_dialled_is_refused(
    shell: Shell, line: list[str], options: list[str], said: str
) -> None:
    shell.refuse(said, *line, *options, "out=merged")


def test_a_private_base_is_refused(shell: Shell, line: list[str], tmp_path: Path) -> None:
    base = next(option for option in line if option.startswith("experts.base=")).split("=")[1]
    copy = shutil.copytree(base, tmp_path / "base")
    write_record(copy, record("code", "letters"))
    options = [f"experts.base={copy}", "target_epsilon=4", "out=merged"]
    shell.refuse("dial experts of a public base", *line, *options)
