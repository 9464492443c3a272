"""Privacy records from experts to recipe, model card, report and the merged model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.mechanisms import GaussianMechanism
from merging.checkpoints.privacy_record import (
    PrivacyRecord,
    PrivacySpend,
    read_record,
    write_record,
)
from merging.privacy.ledger import Ledger
from tests.experiments.local import overrides
from tests.experiments.refusals import Shell

EPSILONS = {"code": 8.0, "prose": 2.0}
SUM = "(ε, δ) = (10, 1.1e-05) per record of data set tickets-2025"
LETTERS = "(ε, δ) = (3, 1e-05) per record of data set letters"
NOT_PRIVATE = "Not private: expert 'maths' has no privacy record"


def record(epsilon: float, dataset: str = "tickets-2025", **changes: object) -> PrivacyRecord:
    delta = 1e-6 if epsilon == 2 else 1e-5
    return PrivacyRecord((PrivacySpend(dataset, epsilon, delta, "rdp", "1", **changes),))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def experts(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's base and experts; `code` and `prose` learnt the same data with privacy."""
    root = tmp_path_factory.mktemp("private")
    for name in ("base", "base-code", "base-prose", "base-maths"):
        shutil.copytree(world / name, root / name)
    for name, epsilon in EPSILONS.items():
        write_record(root / f"base-{name}", record(epsilon))
    return root


def pool(root: Path, names: Sequence[str]) -> list[str]:
    listed = ",".join(f"{name}:{root}/base-{name}" for name in names)
    return ["experts=local", f"experts.base={root}/base", f"experts.experts={{{listed}}}"]


def merge(shell: Shell, root: Path, out: Path, *names: str) -> str:
    ended = shell.run("merge", *pool(root, names), "method=linear", "device=cpu", f"out={out}")
    assert ended.code == 0, ended.stderr
    return ended.stdout


def test_two_private_experts(shell: Shell, experts: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    assert SUM in merge(shell, experts, out, "code", "prose")
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["privacy"]["private"] is True
    stated = recipe["privacy"]["data_sets"]["tickets-2025"]
    assert stated["epsilon"] == 10
    assert stated["delta"] == pytest.approx(1.1e-5)
    assert SUM in recipe["privacy"]["words"][0]
    assert SUM in (out / "README.md").read_text()

    ended = shell.run("rebuild", str(out / "recipe.json"), "--out", str(tmp_path / "again"))
    assert ended.code == 0, ended.stderr
    first, again = (tmp_path / name / "privacy.json" for name in ("merged", "again"))
    assert first.read_bytes() == again.read_bytes()

    # The merged model is an expert again: what both parents spent counts once.
    shutil.copytree(out, experts / "base-merged", ignore=shutil.ignore_patterns("recipe.json"))
    merge(shell, experts, tmp_path / "second", "merged", "code")
    second = json.loads((tmp_path / "second" / "recipe.json").read_text())
    assert second["privacy"]["data_sets"]["tickets-2025"]["epsilon"] == 10


def test_data_sets_that_are_declared_disjoint(shell: Shell, experts: Path, tmp_path: Path) -> None:
    write_record(experts / "base-maths", record(3.0, "letters", disjoint_from=("tickets-2025",)))
    stdout = merge(shell, experts, tmp_path / "merged", "code", "prose", "maths")
    (experts / "base-maths" / "privacy.json").unlink()
    assert SUM in stdout
    assert LETTERS in stdout
    assert "(ε, δ) = (10, 1.1e-05) at most for any record" in stdout


def test_an_expert_without_record(shell: Shell, experts: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge(shell, experts, out, "code", "maths")
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["privacy"]["private"] is False
    assert NOT_PRIVATE in recipe["privacy"]["words"][0]
    assert NOT_PRIVATE in (out / "README.md").read_text()
    assert read_record(out) is not None
    assert read_record(out).unrecorded == ("expert 'maths'",)  # type: ignore[union-attr]

    none = tmp_path / "none"
    merge(shell, experts, none, "maths")
    assert NOT_PRIVATE in (none / "README.md").read_text()
    assert read_record(none) == PrivacyRecord(unrecorded=("expert 'maths'",))


def test_an_edited_record_is_refused(shell: Shell, experts: Path, tmp_path: Path) -> None:
    expert = Path(shutil.copytree(experts / "base-code", tmp_path / "base-code"))
    shutil.copytree(experts / "base", tmp_path / "base")
    file = expert / "privacy.json"
    file.write_text(file.read_text().replace("8.0", "1.0"))
    options = [*pool(tmp_path, ["code"]), "device=cpu", "out=merged"]
    pattern = r"base-code/privacy\.json: it was edited after it was written"
    shell.refuse(pattern, "merge", "method=linear", *options)


def test_rebuild_compares_with_the_experts(shell: Shell, experts: Path, tmp_path: Path) -> None:
    root = tmp_path / "own"
    for name in ("base", "base-code"):
        shutil.copytree(experts / name, root / name)
    out = tmp_path / "merged"
    merge(shell, root, out, "code")
    write_record(root / "base-code", record(9.0))
    rebuild = ("rebuild", str(out / "recipe.json"), "--out", "again")
    shell.refuse("the recipe's ledger lacks training on data set 'tickets-2025'", *rebuild)

    content = json.loads((out / "recipe.json").read_text())
    content["privacy"]["spends"][0]["epsilon"] = 0.5
    (out / "recipe.json").write_text(json.dumps(content))
    shell.refuse(r"recipe\.json: it was edited after it was written", *rebuild)


def test_a_search_counts_the_whole_pool(shell: Shell, world: Path, tmp_path: Path) -> None:
    """In recipe, model card, report, summary and table; the check says it before."""
    root = tmp_path / "own"
    names, known = ("code", "prose", "maths"), {"mechanisms": (GaussianMechanism(20.0, steps=2),)}
    for name in ("base", *(f"base-{each}" for each in names)):
        shutil.copytree(world / name, root / name)
    for name, epsilon in EPSILONS.items():
        write_record(root / f"base-{name}", record(epsilon, **known))
    run = tmp_path / "run"
    options = [*overrides(world), *pool(root, names), "budget.evaluations=3", "in_hull=null"]
    ended = shell.run("search", *options, f"out={run}", "strategy=random", "finalists=1")
    assert ended.code == 0, ended.stderr
    recipe = json.loads((run / "recipe.json").read_text())["privacy"]
    assert recipe["unrecorded"] == ["expert 'maths'"]
    stated = recipe["data_sets"]["tickets-2025"]
    assert stated["how"] == "rdp"
    assert stated["sum"]["epsilon"] == 10
    assert stated["epsilon"] == stated["rdp"]["epsilon"] == 8  # never below the largest part
    sentence = recipe["words"][1]
    assert (
        "per record of data set tickets-2025 (one replaced by one that contributes nothing); 2"
        in sentence
    )
    assert "where their sum is (ε, δ) = (10, 1.1e-05)" in sentence
    for text in (
        *((run / name).read_text() for name in ("report.html", "model/README.md")),
        ended.stdout,
        "\n".join(json.loads((run / "summary.json").read_text())["privacy"]["words"]),
    ):
        assert NOT_PRIVATE in text.replace("&#x27;", "'")
        assert sentence in text
    assert (run / "recipe.json").stat().st_size < 100_000
    assert read_record(run / "model") is not None


def test_a_base_with_a_record_counts(experts: Path, tmp_path: Path) -> None:
    from merging.grouping import Whole
    from merging.methods.linear import Linear
    from merging.plan import uniform_plan

    for name in ("base", "base-code"):
        shutil.copytree(experts / name, tmp_path / name)
    write_record(tmp_path / "base", record(1.0, "letters"))
    opened = ExpertPool.open(str(tmp_path / "base"), {"code": str(tmp_path / "base-code")})
    plan = uniform_plan(Linear(), Whole(), opened)
    ledger = Ledger.of(opened, plan, searched=False)
    assert {each.dataset for each in ledger.spends} == {"letters", "tickets-2025"}
    assert ledger.private
