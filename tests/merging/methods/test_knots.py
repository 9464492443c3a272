"""KnOTS beside the contract: exact for low rank, its inner method described in recipes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from merging.method import MergeError
from merging.methods.dare_ties import DareTies
from merging.methods.knots import Knots
from merging.methods.slerp import Slerp
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties
from merging.plan import describe_method, method_from_description
from merging.rules import spectral
from merging.rules.spectral import low_rank_svd, thin_svd
from tests.merging.methods.method_cases import Problem, merge, random_problem, start_knobs


def low_rank(shape: tuple[int, int], rank: int, *, seed: int = 0, count: int = 3) -> Tensor:
    """Deltas of a rank each, float64, (count, *shape)."""
    rng = torch.Generator().manual_seed(seed)
    b = torch.randn((count, shape[0], rank), generator=rng, dtype=torch.float64)
    a = torch.randn((count, rank, shape[1]), generator=rng, dtype=torch.float64)
    return b @ a


def test_sums_are_what_they_are_without_it() -> None:
    """A linear inner method commutes with the change of basis."""
    given = random_problem(TaskArithmetic(), (9, 5), 0)
    torch.testing.assert_close(
        merge(Knots(TaskArithmetic()), given), merge(TaskArithmetic(), given)
    )


def test_ties_is_another_merge_in_coordinates() -> None:
    given = random_problem(Ties(), (9, 5), 0)
    assert not torch.allclose(merge(Knots(), given), merge(Ties(), given))


def test_rotating_the_outputs_rotates_the_merge() -> None:
    """What alignment is for: TIES on the entries depends on their basis, KnOTS does not."""
    given = random_problem(Ties(), (6, 8), 3)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    turned = Problem(given.slot, turn @ given.base, turn @ given.deltas, given.knobs)
    torch.testing.assert_close(merge(Knots(), turned), turn @ merge(Knots(), given))
    assert not torch.allclose(merge(Ties(), turned), turn @ merge(Ties(), given))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_merge_stays_in_the_span_of_the_experts_columns(dtype: torch.dtype) -> None:
    deltas = low_rank((40, 30), 2)
    given = random_problem(Ties(), (40, 30), 0, dtype=dtype)
    given = Problem(given.slot, given.base, deltas.to(dtype), given.knobs)
    moved = (merge(Knots(), given) - given.base).double()
    basis = thin_svd(torch.cat(list(deltas), dim=1))[0]
    assert basis.shape[1] == 6
    rest = moved - basis @ (basis.T @ moved)
    assert rest.norm() < (1e-12 if dtype == torch.float64 else 1e-6) * moved.norm()


def test_one_expert_at_density_one_is_itself() -> None:
    given = random_problem(Knots(), (12, 7), 0, experts=1)
    knobs = start_knobs(Knots(), 1, torch.float64) | {"density": torch.ones(1).double()}
    given = Problem(given.slot, given.base, given.deltas, knobs)
    torch.testing.assert_close(merge(Knots(), given), given.base + given.deltas[0])


def test_inner_methods_noise_belongs_to_the_expert() -> None:
    given = random_problem(Knots(DareTies()), (6, 5), 0, dtype=torch.float32)
    method = Knots(DareTies(seed=1))
    assert torch.equal(merge(method, given), merge(method, given.permuted([2, 0, 1])))
    assert not torch.equal(merge(method, given), merge(Knots(DareTies(seed=2)), given))


def test_inner_methods_refusals_pass_through() -> None:
    given = random_problem(Slerp(), (6, 5), 0, experts=3)
    with pytest.raises(MergeError, match=r"slerp merges exactly 2 experts, 3 given"):
        merge(Knots(Slerp()), given)


def test_description_holds_the_inner_method() -> None:
    method = Knots(DareTies(seed=4))
    description = json.loads(json.dumps(describe_method(method)))
    assert description["inner"]["_target_"] == "merging.methods.dare_ties.DareTies"
    assert method_from_description(description) == method
    description["inner"]["_target_"] = "merging.grouping.Whole"
    with pytest.raises(ValueError, match=r"'merging\.grouping\.Whole' is no merge method"):
        method_from_description(description)
    with pytest.raises(ValueError, match=r"'os\.system' is no merge method"):
        method_from_description(description | {"inner": {"_target_": "os.system"}})


class TestLowRankSvd:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("rank", [1, 40, 63, 64, 70, 150])
    def test_is_the_decomposition(
        self, rank: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rounded to `dtype` as a product of LoRA factors is: of full rank but for rounding."""
        matrix = low_rank((300, 320), rank, count=1)[0].to(dtype)
        whole = np.linalg.svd(matrix.double().numpy())[1]
        seen: list[tuple[int, ...]] = []
        svd = torch.linalg.svd

        def counted(given: Tensor, full_matrices: bool) -> tuple[Tensor, Tensor, Tensor]:
            seen.append(tuple(given.shape))
            u, s, v = svd(given, full_matrices=full_matrices)
            return u, s, v

        monkeypatch.setattr(torch.linalg, "svd", counted)
        left, values, right = low_rank_svd(matrix)
        eps = torch.finfo(dtype).eps
        assert len(values) == rank
        torch.testing.assert_close((left * values) @ right, matrix, rtol=0, atol=1e4 * eps)
        torch.testing.assert_close(
            values.double(), torch.as_tensor(whole[:rank]), rtol=1e2 * eps, atol=0
        )
        torch.testing.assert_close(left.T @ left, torch.eye(rank, dtype=dtype), rtol=0, atol=1e-5)
        assert seen[0][0] == 64
        assert ((300, 320) in seen) == (rank >= 64), "128 columns would be too many for 300 rows"

    def test_leading_triplets_alone(self) -> None:
        matrix = low_rank((300, 320), 20, count=1)[0]
        left, values, right = low_rank_svd(matrix, 5)
        assert (left.shape, values.shape, right.shape) == ((300, 5), (5,), (5, 320))
        torch.testing.assert_close(values, thin_svd(matrix)[1][:5])

    def test_small_and_full_matrices_are_decomposed_as_they_are(self) -> None:
        rng = torch.Generator().manual_seed(0)
        for shape in ((6, 5), (256, 300)):
            matrix = torch.randn(shape, generator=rng)
            for ours, theirs in zip(low_rank_svd(matrix), thin_svd(matrix), strict=True):
                assert torch.equal(ours, theirs)

    def test_global_generator_is_left_alone(self) -> None:
        torch.manual_seed(0)
        before = torch.random.get_rng_state()
        low_rank_svd(low_rank((300, 320), 3, count=1)[0])
        assert torch.equal(before, torch.random.get_rng_state())
        assert spectral._FIRST_SKETCH == 64
