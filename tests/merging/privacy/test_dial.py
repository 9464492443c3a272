"""The dial against closed forms of Gaussian noise, dp-accounting, and what it gives out."""

import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import norm

from merging.checkpoints.mechanisms import (
    DiscreteGaussianMechanism,
    GaussianMechanism,
    Mechanism,
    PrivacyRecordError,
    PureEpsilon,
    RandomSelection,
    mechanism_from_json,
    mechanism_to_json,
)
from merging.checkpoints.privacy_record import PrivacySpend
from merging.privacy import accounting
from merging.privacy.dial import Dial, Kind, Setting
from merging.privacy.ledger import Ledger
from merging.privacy.price_list import DialError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason="needs the extra dp"
)
DELTA = 1e-5


def expert(name: str, *mechanisms: Mechanism, **changes: Any) -> Ledger:
    """The ledger of an expert that states what its mechanisms cost."""
    delta = changes.get("delta", DELTA)
    values = {"dataset": "tickets", "delta": delta, "release": f"training {name}", **changes}
    values.setdefault("epsilon", accounting.epsilon(mechanisms, delta) if mechanisms else 1.0)
    spend = PrivacySpend(accountant="rdp", accountant_version="1", mechanisms=mechanisms, **values)
    return Ledger().add(spend)


def gaussians(*multipliers: float, **changes: Any) -> dict[str, Ledger]:
    return {f"e{i}": expert(f"e{i}", GaussianMechanism(z)) for i, z in enumerate(multipliers)}


def drawn(chances: tuple[float, ...], *multipliers: float) -> RandomSelection:
    options = tuple((GaussianMechanism(z),) for z in multipliers)
    return RandomSelection(chances, options, tuple((f"{z}",) for z in multipliers))


def profile(multiplier: float, epsilon: float) -> float:
    """delta(epsilon) of Gaussian noise: Balle & Wang 2018, arXiv 1805.06530, theorem 8."""
    a, b = 1 / (2 * multiplier), epsilon * multiplier
    return float(norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b))


def test_a_draw_costs_the_mean_of_the_moments_and_of_the_profiles() -> None:
    chances, noise = (0.75, 0.1875, 0.0625), (4.0, 2.0, 0.8)
    selection = drawn(chances, *noise)
    for a in (1.5, 2.0, 8.0, 32.0):  # log(sum_i p_i exp(a (a - 1) / (2 z_i^2))) / (a - 1)
        exponents = [a * (a - 1) / (2 * z * z) for z in noise]
        exact = logsumexp(exponents, b=chances) / (a - 1)
        assert accounting.divergence([selection], a) == pytest.approx(exact, rel=1e-9)
    for delta in (1e-3, 1e-6):
        epsilon = accounting.epsilon([selection], delta, accountant="pld")
        mean = sum(p * profile(z, epsilon) for p, z in zip(chances, noise, strict=True))
        assert 0.99 * delta <= mean <= delta * (1 + 1e-9)
        assert epsilon <= accounting.epsilon([selection], delta)


def test_poisson_samples_and_combinations_agree_with_dp_accounting() -> None:
    import dp_accounting
    from dp_accounting.pld import privacy_loss_distribution as pld

    low, high = GaussianMechanism(4.0, 0.1, 4), GaussianMechanism(1.5, 0.1, 4)
    selection = RandomSelection((0.875, 0.125), ((low,), (high,)), (("a",), ("b",)))
    losses = [
        pld.from_gaussian_mechanism(m.noise_multiplier, sampling_prob=0.1).self_compose(4)
        for m in (low, high)
    ]
    epsilon = accounting.epsilon([selection], DELTA, accountant="pld")
    means = [  # both directions: a unit less, a unit more
        sum(
            p * getattr(loss, side).get_delta_for_epsilon(epsilon)
            for p, loss in zip((0.875, 0.125), losses, strict=True)
        )
        for side in ("_pmf_remove", "_pmf_add")
    ]
    assert max(means) == pytest.approx(DELTA, rel=1e-6)

    dial = Dial({"a": expert("a", low), "b": expert("b", high)}, DELTA)
    for accountant in ("rdp", "pld"):
        other: Any = getattr(dp_accounting, accountant)
        witness = (other.RdpAccountant if accountant == "rdp" else other.PLDAccountant)()
        for one in (low, high):
            event = dp_accounting.GaussianDpEvent(one.noise_multiplier)
            witness.compose(dp_accounting.PoissonSampledDpEvent(0.1, event), one.steps)
        together = replace(dial, accountant=accountant).epsilon(("a", "b"))
        assert together == pytest.approx(witness.get_epsilon(DELTA), rel=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    noise=st.lists(st.floats(0.6, 20.0), min_size=1, max_size=4, unique=True),
    targets=st.tuples(st.floats(0.05, 12.0), st.floats(0.05, 12.0)),
    kind=st.sampled_from(["best", "selection", "combination"]),
)
def test_no_setting_costs_more_than_asked_and_more_epsilon_is_never_worse(
    noise: list[float], targets: tuple[float, float], kind: Kind
) -> None:
    dial = Dial(gaussians(*noise), DELTA)
    found: list[Setting] = []
    for target in sorted(targets):
        try:
            setting = dial.turn(kind, target)
        except DialError:
            assert target < min(dial.epsilon((name,)) for name in dial.experts)
            continue
        assert setting.price.epsilon <= target
        assert math.fsum(setting.probabilities) == 1
        assert all(math.isclose(math.fsum(o.values()), 1) for o in setting.options)
        # the ledger says what was asked, and its mechanisms cost what it says
        promise = Ledger().add(*setting.spends).guarantees["tickets"]
        assert promise is not None
        assert promise.price == setting.price
        (spend,) = setting.spends
        assert spend.mechanisms is not None
        assert accounting.epsilon(spend.mechanisms, DELTA) <= target * (1 + 1e-12)
        found.append(setting)
    if len(found) == 2:
        assert found[0].utility <= found[1].utility * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["best", "selection", "combination"])
def test_at_the_ends_it_gives_out_an_expert_at_its_own_price(kind: Kind) -> None:
    dial = Dial(gaussians(8.0, 4.0, 2.0), DELTA)
    least = dial.turn(kind, dial.epsilon(("e0",)))
    assert least.options == ({"e0": 1.0},)
    assert least.spends == dial.experts["e0"].spends
    if kind == "selection":
        most = dial.turn(kind, 100.0)
        assert most.options == ({"e2": 1.0},)
        assert most.price.epsilon == dial.epsilon(("e2",))


def test_the_draw_is_as_large_as_the_target_allows() -> None:
    dial = Dial(gaussians(4.0, 1.0), DELTA)
    target = dial.epsilon(("e1",)) - 1
    setting = dial.selection(target)
    (_, chance), step = setting.probabilities, 2.0**-30
    assert accounting.epsilon([drawn((1 - chance, chance), 4.0, 1.0)], DELTA) <= target
    more = chance + step
    assert accounting.epsilon([drawn((1 - more, more), 4.0, 1.0)], DELTA) > target
    draws = [tuple(setting.draw()) for _ in range(4000)]
    assert abs(draws.count(("e1",)) / 4000 - chance) < 5 * math.sqrt(chance / 4000)


def test_the_best_is_a_draw_only_where_it_shows() -> None:
    dial = Dial(gaussians(4.0, 2.0, 1.0), DELTA)
    for target in (2.0, 2.6, 3.2, 3.8, 4.4, 5.0):
        best, certain, alone = dial.best(target), dial.combination(target), dial.selection(target)
        assert min(best.probabilities) >= 0.01
        assert best.utility >= certain.utility
        assert best.utility >= alone.utility or min(alone.probabilities) < 0.01
    assert len(dial.best(4.4).options) == 2
    assert len(dial.best(2.6).options[0]) == 2  # both of the more private experts


def test_a_stated_utility_decides() -> None:
    dial = Dial(gaussians(8.0, 4.0, 2.0), DELTA)
    worth: Mapping[tuple[str, ...], float] = {("e0",): 0.9, ("e0", "e1"): 0.95}
    setting = dial.best(50.0, lambda names: worth.get(names, 0.1))
    assert tuple(setting.options[0]) == ("e0", "e1")
    assert dial.selection(50.0, lambda names: worth.get(names, 0.1)).options == ({"e0": 1.0},)


def audited(
    p: Mapping[str, Any], setting: Setting, noise: dict[str, float], epsilon: float
) -> float:
    """The delta that outputs show at `epsilon`: of label and value, with a unit and without.

    `p`: what a release does instead of what it says: ``scale`` of the noise, ``chances`` by data.
    """
    rng, size, names = np.random.default_rng(5), 400_000, [next(iter(o)) for o in setting.options]
    scale, counts = p.get("scale", 1.0) * np.array([noise[name] for name in names]), []
    for unit in (1, 0):
        chances = p.get("chances", {}).get(unit, setting.probabilities)
        label = np.searchsorted(list(accumulate(chances)), rng.random(size))
        value = unit + scale[label] * rng.standard_normal(size)
        loss = (2 * value - 1) / (2 * scale[label] ** 2)  # log N(x; 1, z) / N(x; 0, z)
        counts.append(np.mean((loss > epsilon) | ((label == 1) & bool(p.get("chances")))))
    return float(counts[0] - math.exp(epsilon) * counts[1])


def test_outputs_show_the_stated_delta_and_planted_faults_show_more() -> None:
    noise = {"e0": 3.0, "e1": 0.8}
    experts = {n: expert(n, GaussianMechanism(z), delta=0.05) for n, z in noise.items()}
    setting = Dial(experts, 0.05, "pld").selection(1.2)
    assert 0.05 < setting.probabilities[1] < 0.9
    tight = audited({}, setting, noise, setting.price.epsilon)
    assert tight == pytest.approx(0.05, abs=0.004)
    assert audited({"scale": 0.5}, setting, noise, setting.price.epsilon) > 0.08
    by_data = {"chances": {1: (0.5, 0.5), 0: (1.0, 0.0)}}
    assert audited(by_data, setting, noise, setting.price.epsilon) > 0.4


def test_a_merge_and_its_own_experts_together_cost_no_more_than_ledgers_add_up() -> None:
    dial = Dial(gaussians(4.0, 1.0), DELTA)
    setting = dial.selection(dial.epsilon(("e1",)) - 1)
    (low, high), (p, q) = (1 / 32, 1 / 2), setting.probabilities  # D_a / a
    for a in (1.5, 4.0, 16.0):
        # the draw, the drawn expert, and expert e1, which may be the same one
        joint = logsumexp([(a - 1) * a * (low + high), (a - 1) * a * high], b=[p, q]) / (a - 1)
        mechanisms = [*(setting.spends[0].mechanisms or ()), GaussianMechanism(1.0)]
        assert joint <= accounting.divergence(mechanisms, a)
    ledger = Ledger().add(*setting.spends).joined(dial.experts["e1"])
    promise = ledger.guarantees["tickets"]
    assert promise is not None
    assert promise.releases == 2
    assert promise.price.epsilon > dial.epsilon(("e1",))


def test_ledgers_and_records_keep_a_draw_and_say_it() -> None:
    setting = Dial(gaussians(4.0, 1.0), DELTA).selection(4.0)
    (spend,) = setting.spends
    assert PrivacySpend.from_json(spend.to_json()) == spend
    ledger = Ledger().add(spend)
    assert Ledger.from_description(ledger.describe()).spends == ledger.spends
    words = " ".join(ledger.sentences())
    assert "random selection of e0 with probability" in words
    assert "whoever learns what was drawn" in words
    assert "one who sees this merge only" in words
    again = Dial(gaussians(4.0, 1.0), DELTA).selection(4.0).spends
    assert len(ledger.add(*again).spends) == 2  # two draws are two releases
    # what was drawn may be saved once more beside the merge, as the head of a classifier is
    assert not ledger.beyond(gaussians(4.0, 1.0)["e1"]).spends
    assert ledger.beyond(expert("e2", GaussianMechanism(1.0))).spends


def test_a_combination_says_what_it_does_not_count() -> None:
    setting = Dial(gaussians(4.0, 2.0, 1.0), DELTA).combination(2.6)
    words = " ".join(Ledger().add(*setting.spends).sentences())
    assert "merge of e0 + e1) costs what all of its parts cost together" in words


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (Ledger().read(None, "expert 'b'", None), "has no privacy record"),
        (Ledger(), "spent nothing"),
        (expert("b", GaussianMechanism(1.0), dataset="mails"), "trained on the same data"),
        (expert("b", GaussianMechanism(1.0), unit="user"), "each user of tickets"),
        (expert("b", GaussianMechanism(1.0), relation="replace_one"), "replace_one"),
        (expert("b", GaussianMechanism(2.0), epsilon=9.0), "some are missing"),
    ],
)
def test_experts_that_cannot_be_dialled_are_refused(changed: Ledger, said: str) -> None:
    with pytest.raises(DialError, match=said):
        Dial({"a": expert("a", GaussianMechanism(2.0)), "b": changed}, DELTA)


def test_other_input_is_refused_in_a_sentence() -> None:
    known = expert("a", GaussianMechanism(2.0))
    (spend,) = known.spends
    with pytest.raises(DialError, match="not known"):
        Dial({"a": Ledger().add(replace(spend, mechanisms=None))}, DELTA)
    with pytest.raises(DialError, match="no identity of its release"):
        Dial({"a": Ledger().add(replace(spend, release=None))}, DELTA)
    with pytest.raises(DialError, match="1 to 8 experts"):
        Dial({}, DELTA)
    with pytest.raises(DialError, match=r"delta must be.*target_delta.*--delta"):
        Dial({"a": known}, 0.0)
    with pytest.raises(DialError, match=r"no expert costs epsilon=0.1.*costs 2\.\d+"):
        Dial({"a": known}, DELTA).best(0.1)
    discrete = expert("d", DiscreteGaussianMechanism(2.0))
    with pytest.raises(DialError, match="only the accountant rdp"):
        Dial({"d": discrete}, DELTA, "pld")


def test_selections_are_checked_and_read_back() -> None:
    nested = RandomSelection(
        (0.5, 0.5), ((drawn((1.0,), 2.0),), (PureEpsilon(1.0),)), (("a",), ("b",))
    )
    assert mechanism_from_json(mechanism_to_json(nested)) == nested
    one = (GaussianMechanism(1.0),)
    for chances, options in (
        ((0.5,), (one,)),
        ((0.5, 0.5), (one,)),
        ((1.0,), ((),)),
        ((1.0,), (("x",),)),
    ):
        with pytest.raises(PrivacyRecordError):
            RandomSelection(chances, options, (("a",),))  # type: ignore[arg-type]
    with pytest.raises(PrivacyRecordError, match="must hold lists"):
        mechanism_from_json({**mechanism_to_json(nested), "options": 3})


def test_what_a_record_states_beyond_its_mechanisms_is_never_lost() -> None:
    """It may state more than is known, by what accountants differ: some may be missing."""
    noise = gaussians(200.0, 8.0) | {"e2": expert("e2", GaussianMechanism(1.2))}
    (spend,) = noise["e2"].spends
    stated = 1.1 * spend.epsilon + 0.09
    dial = Dial({**noise, "e2": Ledger().add(replace(spend, epsilon=stated))}, DELTA)
    for names in (("e2",), ("e0", "e2"), ("e0", "e1", "e2")):
        joined = reduce(Ledger.joined, map(dial.experts.__getitem__, names)).guarantees["tickets"]
        assert joined is not None
        assert dial.epsilon(names) >= max(stated, joined.price.epsilon)
    assert replace(dial, delta=DELTA / 10).epsilon(("e2",)) >= stated
    assert replace(dial, accountant="pld").epsilon(("e0", "e2")) >= stated
    for kind in ("best", "selection"):  # what a draw costs is not known
        assert len(dial.turn(kind, stated - 0.1).options) == 1
        assert len(Dial(noise, DELTA).turn(kind, spend.epsilon - 0.1).options) == 2


def test_what_is_asked_for_as_the_refusal_says_is_given() -> None:
    dial = Dial(gaussians(4.03), DELTA)
    with pytest.raises(DialError) as caught:
        dial.best(0.1)
    (said,) = re.findall(r"costs ([0-9.]+);", str(caught.value))
    assert f"{dial.epsilon(('e0',)):.4g}" != said, "rounding to the nearest would do"
    dial.best(float(said))
