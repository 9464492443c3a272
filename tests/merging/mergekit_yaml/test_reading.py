"""mergekit files of every method against float64 references; defaults as in mergekit 0.1.5."""

import pytest
import torch
from torch import Tensor

from merging.grouping import Whole
from merging.mergekit_yaml.reading import MergekitJob
from merging.mergekit_yaml.spelling import METHODS
from merging.method import MergeMethod
from merging.methods.breadcrumbs import Breadcrumbs
from merging.methods.breadcrumbs_ties import BreadcrumbsTies
from merging.methods.dare_linear import DareLinear
from merging.methods.dare_ties import DareTies
from merging.methods.della import Della
from merging.methods.della_linear import DellaLinear
from merging.methods.karcher import Karcher
from merging.methods.linear import Linear
from merging.methods.model_stock import ModelStock
from merging.methods.nuslerp import NuSlerp
from merging.methods.sce import Sce
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties
from merging.plan import MergePlan, describe_method
from tests.merging.mergekit_yaml.mergekit_files import (
    EXPERTS,
    LAYERS,
    Run,
    States,
    assert_equals,
    consensus,
    largest,
    sphere,
)

DENSE = {"weight": 1.0, "density": 1.0, "scale": 1.0}
DEFAULTS: dict[str, tuple[MergeMethod, dict[str, float]]] = {
    "linear": (Linear(), {"weight": 1.0}),
    "task_arithmetic": (TaskArithmetic(), {"weight": 1.0, "scale": 1.0}),
    "nuslerp": (NuSlerp(), {"weight": 1.0}),
    "multislerp": (Karcher(task_vectors=True, max_iterations=0), {"weight": 1.0}),
    "karcher": (Karcher(max_iterations=10, tolerance=1e-5), {"weight": 1.0}),
    "ties": (Ties(normalize=True), DENSE),
    "dare_linear": (DareLinear(), DENSE),
    "dare_ties": (DareTies(normalize=False), DENSE),
    "della": (Della(normalize=True), {**DENSE, "epsilon": 0.15}),
    "della_linear": (DellaLinear(), {**DENSE, "epsilon": 0.15}),
    "breadcrumbs": (Breadcrumbs(), {**DENSE, "gamma": 0.01}),
    "breadcrumbs_ties": (BreadcrumbsTies(normalize=False), {**DENSE, "gamma": 0.01}),
    "sce": (Sce(), {"density": 1.0, "scale": 1.0}),
    "model_stock": (ModelStock(), {"scale": 1.0}),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_those_of_mergekit(run: Run, name: str) -> None:
    method, knobs = DEFAULTS[name]
    job = run(f"""
        merge_method: {name}
        base_model: base
        models:
          - model: code
          - model: prose
        {"parameters: {weight: 1}" if "weight" in METHODS[name].per_model else ""}
        """)
    assert job.plan.method == method
    assert job.plan.coefficients["model"] == {
        knob.name: dict.fromkeys(job.pool.expert_names, knobs[knob.name])
        if knob.per_expert
        else knobs[knob.name]
        for knob in method.knobs
    }


class TestMethods:
    """One file for every method, as users write them."""

    def test_linear_normalizes(self, run: Run, states: States) -> None:
        job = run("""
            models:
              - model: code
                parameters: {weight: 1.0}
              - model: prose
                parameters: {weight: 0.3}
              - model: maths
                parameters: {weight: 0.7}
            merge_method: linear
            dtype: float32
            """)
        code, prose, maths = (states[name] for name in EXPERTS)
        assert_equals(job, lambda n: (code[n] + 0.3 * prose[n] + 0.7 * maths[n]) / 2)

    def test_linear_without_normalization(self, run: Run, states: States) -> None:
        job = run("""
            merge_method: linear
            models:
              - {model: code, parameters: {weight: 1.5}}
              - {model: prose, parameters: {weight: -0.25}}
            parameters: {normalize: false}
            """)
        assert_equals(job, lambda n: 1.5 * states["code"][n] - 0.25 * states["prose"][n])

    def test_linear_counts_a_base_model_as_one_more(self, run: Run, states: States) -> None:
        job = run("""
            merge_method: linear
            base_model: base
            models:
              - {model: code, parameters: {weight: 3}}
            parameters: {weight: 1}
            """)
        assert job.pool.expert_names == ("code", "base")
        assert_equals(job, lambda n: (3 * states["code"][n] + states["base"][n]) / 4)

    def test_slerp_of_the_well_known_example(self, run: Run, states: States) -> None:
        job = run(f"""
            slices:
              - sources:
                  - model: base
                    layer_range: [0, {LAYERS}]
                  - model: code
                    layer_range: [0, {LAYERS}]
            merge_method: slerp
            base_model: base
            parameters:
              t:
                - filter: self_attn
                  value: [0, 0.5, 0.3, 0.7, 1]
                - filter: mlp
                  value: [1, 0.5, 0.7, 0.3, 0]
                - value: 0.5
            dtype: float32
            """)

        def expected(name: str) -> Tensor:
            t = 0.5
            if "self_attn" in name:
                t = [0, 0.5, 0.3, 0.7, 1][int(name.split(".")[2])]
            elif "mlp" in name:
                t = [1, 0.5, 0.7, 0.3, 0][int(name.split(".")[2])]
            return sphere(states["base"][name], states["code"][name], t)

        assert_equals(job, expected)

    def test_slerp_starts_from_the_base_model_wherever_it_is_listed(
        self, run: Run, states: States
    ) -> None:
        text = "merge_method: slerp\nbase_model: prose\nparameters: {t: 0.25}\nmodels: "
        for listing in ("[{model: code}, {model: prose}]", "[{model: code}]"):
            job = run(text + listing)
            assert_equals(job, lambda n: sphere(states["prose"][n], states["code"][n], 0.25))

    def test_ties_trims_and_normalizes(self, run: Run, states: States) -> None:
        job = run("""
            models:
              - model: base
                # no parameters necessary for base model
              - model: code
                parameters:
                  density: 0.5
                  weight: 0.5
              - model: prose
                parameters:
                  density: 0.25
                  weight: 0.3
              - model: maths
                parameters:
                  weight: 0.2
            merge_method: ties
            base_model: base
            parameters:
              normalize: true
              int8_mask: true
              lambda: 0.8
            dtype: float32
            """)
        assert job.pool.expert_names == EXPERTS
        for normalize in (True, False):
            if not normalize:
                knobs = job.plan.coefficients
                job = MergekitJob(
                    job.pool, MergePlan(Ties(normalize=False), Whole(), EXPERTS, knobs), None
                )

            def expected(name: str, normalize: bool = normalize) -> Tensor:
                base = states["base"][name]
                given = {"code": (0.5, 0.5), "prose": (0.3, 0.25), "maths": (0.2, 1.0)}
                shares = [
                    weight * largest(states[e][name] - base, round(density * base.numel()))
                    for e, (weight, density) in given.items()
                ]
                return base + 0.8 * consensus(shares, [0.5, 0.3, 0.2], normalize=normalize)

            assert_equals(job, expected)

    def test_task_arithmetic_sums(self, run: Run, states: States) -> None:
        job = run("""
            merge_method: task_arithmetic
            base_model: base
            models:
              - {model: code, parameters: {weight: 0.6}}
              - {model: prose, parameters: {weight: -0.4}}
            """)
        base, code, prose = states["base"], states["code"], states["prose"]
        assert_equals(
            job, lambda n: base[n] + 0.6 * (code[n] - base[n]) - 0.4 * (prose[n] - base[n])
        )

    def test_parameters_of_the_base_are_ignored(self, run: Run, states: States) -> None:
        job = run("""
            merge_method: task_arithmetic
            base_model: base
            models:
              - {model: base, parameters: {weight: 7.0, density: [0, 1]}}
              - {model: code, parameters: {weight: 1.0}}
            """)
        assert job.pool.expert_names == ("code",)
        assert_equals(job, lambda n: states["code"][n])

    def test_model_stock(self, run: Run, states: States) -> None:
        job = run("""
            models: [{model: code}, {model: prose}, {model: maths}]
            merge_method: model_stock
            base_model: base
            parameters: {filter_wise: false}
            dtype: float32
            """)

        def expected(name: str) -> Tensor:
            base = states["base"][name]
            deltas = [states[e][name] - base for e in EXPERTS]
            cosines = [
                float((a * b).sum() / (a.norm() * b.norm()))
                for i, a in enumerate(deltas)
                for b in deltas[i + 1 :]
            ]
            cos = max(0.0, sum(cosines) / 3)
            return base + 3 * cos / (1 + 2 * cos) * sum(deltas, torch.zeros(())) / 3

        assert_equals(job, expected)

    @pytest.mark.parametrize("base", ["base_model: base\n", ""])
    def test_nuslerp(self, run: Run, states: States, base: str) -> None:
        job = run(
            base
            + """
merge_method: nuslerp
models:
  - {model: code, parameters: {weight: 0.6}}
  - {model: maths, parameters: {weight: 0.2}}
"""
        )

        def expected(name: str) -> Tensor:
            origin = states["base"][name] if base else torch.zeros(())
            first, second = states["code"][name] - origin, states["maths"][name] - origin
            return origin + sphere(first, second, 0.25)

        assert_equals(job, expected)

    @pytest.mark.parametrize("row_wise", [False, True])
    def test_nuslerp_turns_rows_or_columns(self, run: Run, states: States, row_wise: bool) -> None:
        """row_wise transposes (out, in) first in mergekit 0.1.5, whatever its name says."""
        job = run(f"""
            merge_method: nuslerp
            base_model: base
            parameters: {{nuslerp_flatten: false, nuslerp_row_wise: {str(row_wise).lower()}}}
            models:
              - {{model: code, parameters: {{weight: 0.6}}}}
              - {{model: maths, parameters: {{weight: 0.2}}}}
            """)

        def expected(name: str) -> Tensor:
            base = states["base"][name]
            first, second = (states[e][name] - base for e in ("code", "maths"))
            if row_wise and base.dim() == 2:
                first, second = first.T, second.T
            pairs = zip(*(x.reshape(-1, x.shape[-1]) for x in (first, second)), strict=True)
            turned = torch.stack([sphere(a, b, 0.25) for a, b in pairs])
            turned = turned.T if row_wise and base.dim() == 2 else turned
            return base + turned.reshape(base.shape)

        assert_equals(job, expected)

    @pytest.mark.parametrize("base", ["base_model: base\n", ""])
    def test_multislerp_is_the_mean_direction(self, run: Run, states: States, base: str) -> None:
        job = run(
            base
            + """
merge_method: multislerp
models:
  - {model: code, parameters: {weight: 1}}
  - {model: prose, parameters: {weight: 2}}
  - {model: maths, parameters: {weight: 5}}
"""
        )

        def expected(name: str) -> Tensor:
            origin = states["base"][name] if base else torch.zeros(())
            vectors = [states[e][name] - origin for e in EXPERTS]
            shares = (1 / 8, 2 / 8, 5 / 8)
            parts = [w * v / v.norm() for w, v in zip(shares, vectors, strict=True)]
            mean = sum(parts, torch.zeros(()))
            length: float = sum(w * float(v.norm()) for w, v in zip(shares, vectors, strict=True))
            return origin + mean * (length / float(mean.norm()))

        assert_equals(job, expected)

    def test_karcher_weighs_all_alike_the_base_too(self, run: Run) -> None:
        text = "merge_method: karcher\nmodels: [{model: code}, {model: prose}]\n"
        job = run(text)
        assert job.plan.method == Karcher(max_iterations=10, tolerance=1e-5)
        assert job.plan.coefficients["model"] == {"weight": {"code": 1.0, "prose": 1.0}}
        job = run(text + "base_model: base\nparameters: {max_iter: 3, tol: 1e-4}\n")
        assert job.plan.method == Karcher(max_iterations=3, tolerance=1e-4)
        assert job.pool.expert_names == ("code", "prose", "base")

    def test_karcher_of_two_lies_half_way(self, run: Run, states: States) -> None:
        job = run("merge_method: karcher\nmodels: [{model: code}, {model: prose}]")

        def expected(name: str) -> Tensor:
            a, b = states["code"][name], states["prose"][name]
            half = sphere(a / a.norm(), b / b.norm(), 0.5)
            return half * float(a.norm() + b.norm()) / 2

        assert_equals(job, expected, tolerance=1e-5)

    @pytest.mark.parametrize("signs", [False, True])
    def test_breadcrumbs(self, run: Run, states: States, signs: bool) -> None:
        job = run(f"""
            merge_method: breadcrumbs{"_ties" if signs else ""}
            base_model: base
            models:
              - {{model: code, parameters: {{weight: 0.5, density: 0.5, gamma: 0.125}}}}
              - {{model: prose, parameters: {{weight: 0.25, density: 0.75}}}}
            parameters: {{gamma: 0.25}}
            """)
        assert job.plan.method == (BreadcrumbsTies if signs else Breadcrumbs)(normalize=False)

        def expected(name: str) -> Tensor:
            base = states["base"][name]
            shares = []
            for expert, weight, density, gamma in (
                ("code", 0.5, 0.5, 0.125),
                ("prose", 0.25, 0.75, 0.25),
            ):
                delta = states[expert][name] - base
                top, kept = round(gamma * delta.numel()), round(density * delta.numel())
                band = largest(delta, top + kept) - largest(delta, top)
                shares.append(weight * band)
            if signs:
                return base + consensus(shares, [0.5, 0.25], normalize=False)
            return base + shares[0] + shares[1]

        assert_equals(job, expected)

    def test_sce(self, run: Run, states: States) -> None:
        job = run("""
            merge_method: sce
            base_model: base
            models: [{model: code}, {model: prose}, {model: maths}]
            parameters: {select_topk: 0.5}
            """)

        def expected(name: str) -> Tensor:
            base = states["base"][name]
            deltas = torch.stack([states[e][name] - base for e in EXPERTS])
            spread = deltas.var(dim=0, unbiased=False)
            deltas = deltas * (largest(spread, round(0.5 * base.numel())) != 0)
            energy = deltas.square().flatten(1).sum(1)
            weights = (energy / energy.sum()).reshape(-1, *[1] * base.dim())
            sign = deltas.sum(0).sign()
            agrees = (deltas.sign() == sign) & (deltas != 0)
            mass = (weights * agrees).sum(0)
            return base + (weights * agrees * deltas).sum(0) / torch.where(mass == 0, 1, mass)

        assert_equals(job, expected)

    def test_nearswap_reads_scientific_numbers(self, run: Run, states: States) -> None:
        job = run("""
            merge_method: nearswap
            base_model: base
            models: [{model: code}]
            parameters: {t: 1e-2}
            """)
        base, code = states["base"], states["code"]
        assert_equals(job, lambda n: base[n] + (code[n] - base[n]).clamp(-0.01, 0.01))

    def test_random_methods_sum_or_normalize_as_there(self, run: Run, states: States) -> None:
        """At density 1 there is no noise: what is left are mergekit's defaults."""
        weights = {"code": 0.5, "prose": 0.3, "maths": 0.4}
        models = "".join(
            f"  - {{model: {e}, parameters: {{weight: {w}}}}}\n" for e, w in weights.items()
        )
        for method, signs, normalize in (
            ("dare_linear", False, False),
            ("dare_ties", True, False),
            ("della", True, True),
            ("della_linear", False, False),
        ):
            job = run(f"merge_method: {method}\nbase_model: base\nmodels:\n{models}")
            assert describe_method(job.plan.method)["rescale"] is True

            def expected(name: str, signs: bool = signs, normalize: bool = normalize) -> Tensor:
                base = states["base"][name]
                shares = [w * (states[e][name] - base) for e, w in weights.items()]
                if signs:
                    return base + consensus(shares, [0.5, 0.3, 0.4], normalize=normalize)
                return base + sum(shares, torch.zeros(()))

            assert_equals(job, expected)

    def test_random_methods_read_their_knobs(self, run: Run) -> None:
        job = run("""
            merge_method: della
            base_model: base
            models:
              - {model: code, parameters: {weight: 0.5, density: 0.4, epsilon: 0.05}}
              - {model: prose, parameters: {weight: 0.3}}
            parameters: {rescale: false, normalize: false, lambda: 1.1}
            """)
        assert job.plan.method == Della(rescale=False, normalize=False)
        assert job.plan.coefficients["model"] == {
            "weight": {"code": 0.5, "prose": 0.3},
            "density": {"code": 0.4, "prose": 1.0},
            "epsilon": {"code": 0.05, "prose": 0.15},
            "scale": 1.1,
        }
        job = run("""
            merge_method: dare_ties
            base_model: base
            models: [{model: code, parameters: {weight: 0.5, density: 0.53}}]
            """)
        assert job.plan.method == DareTies(normalize=False)
        assert job.plan.coefficients["model"]["density"] == {"code": 0.53}
