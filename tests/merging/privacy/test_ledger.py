"""Composition against closed forms; dp-accounting itself is the other witness."""

import importlib.util
import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.checkpoints.mechanisms import (
    DiscreteGaussianMechanism,
    GaussianMechanism,
    LaplaceMechanism,
    Mechanism,
    PrivacyRecordError,
    PureEpsilon,
    SparseVector,
)
from merging.checkpoints.privacy_record import PrivacyRecord, PrivacySpend
from merging.grouping import Whole
from merging.methods.regmean import RegMean
from merging.methods.task_arithmetic import TaskArithmetic
from merging.paths.path import PathPlan
from merging.plan import MergePlan, Plan
from merging.privacy import accounting
from merging.privacy.accounting import AccountingError
from merging.privacy.composition import Guarantee, Price, add, group, guarantee, largest
from merging.privacy.ledger import Ledger, experts_of, statistics_of
from merging.spaces.displaced import DisplacedPlan
from merging.stacks.layer_stack import LayerStackPlan, StackedLayer

needs_dp = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason="needs the extra dp"
)


def spend(epsilon: float = 8.0, dataset: str = "tickets", **changes: Any) -> PrivacySpend:
    values: dict[str, Any] = {"delta": 1e-5, "accountant": "rdp", "accountant_version": "1"}
    return PrivacySpend(dataset, epsilon, **{**values, **changes})


def promised(*spends: PrivacySpend, dataset: str = "tickets") -> Guarantee:
    found = guarantee(dataset, spends)
    assert found is not None
    return found


def gaussian_rdp(multipliers: list[float], delta: float) -> float:
    """The best epsilon of ``alpha / (2 s^2)`` summed, by the conversion of definitions.md."""

    def epsilon(alpha: float) -> float:
        rho = sum(alpha / (2 * s * s) for s in multipliers)
        return rho + math.log1p(-1 / alpha) - (math.log(delta) + math.log(alpha)) / (alpha - 1)

    return min(epsilon(1 + i / 100) for i in range(1, 4000))


class TestAdding:
    def test_pure_epsilons_add_up(self) -> None:
        found = promised(*(spend(e, delta=0.0) for e in (0.5, 1.0, 2.0)))
        assert (found.price, found.how, found.releases) == (Price(3.5, 0.0), "sum", 3)

    def test_deltas_too(self) -> None:
        found = promised(spend(8), spend(2, delta=1e-6))
        assert found.price.epsilon == 10
        assert found.price.delta == pytest.approx(1.1e-5)
        assert found.note == "the mechanisms of 2 of them are not known"

    def test_delta_stops_at_one(self) -> None:
        assert add([Price(1, 0.6)] * 2) == Price(2, 1.0)
        assert promised(spend(delta=0.6), spend(delta=0.6)).price.vacuous

    def test_one_alone_is_stated_as_it_is(self) -> None:
        found = promised(spend(mechanisms=(GaussianMechanism(9.0),)))
        assert (found.price, found.rdp, found.note) == (Price(8, 1e-5), None, None)

    def test_units_do_not_mix(self) -> None:
        assert guarantee("tickets", [spend(), spend(unit="user")]) is None

    def test_replace_one_takes_add_or_remove_twice(self) -> None:
        found = promised(spend(1.0), spend(0.5, relation="replace_one"))
        assert found.relation == "replace_one"
        assert found.price.epsilon == pytest.approx(2.5)
        assert found.price.delta == pytest.approx(1e-5 * (1 + math.e) + 1e-5)


class TestParallel:
    def test_disjoint_sets_cost_each_other_nothing(self) -> None:
        spends = spend(8), spend(2, "letters", delta=1e-6, disjoint_from=("tickets",))
        assert promised(*spends).price == Price(8, 1e-5)  # declared on one side only
        assert promised(*spends, dataset="letters").price == Price(2, 1e-6)
        assert Ledger().add(*spends).everywhere == Price(8, 1e-5)
        assert largest([Price(1, 1e-5), Price(2, 1e-6)]) == Price(2, 1e-5)

    def test_others_are_taken_to_overlap(self) -> None:
        found = promised(spend(8), spend(2, "letters"))
        assert found.price.epsilon == 10
        assert found.overlapping == ("letters",)
        (words, *_) = Ledger().add(spend(8), spend(2, "letters")).sentences()
        assert "counting tickets too, which nobody declared disjoint from it" in words

    def test_the_same_set_adds_up_beside_a_disjoint_one(self) -> None:
        other = spend(5, "letters", disjoint_from=("tickets",))
        assert promised(spend(8), spend(1), other).price.epsilon == 9


class TestGroups:
    @pytest.mark.parametrize("size", [1, 2, 5])
    def test_closed_form(self, size: int) -> None:
        found = group(Price(0.5, 1e-6), size)
        assert found.epsilon == pytest.approx(0.5 * size)
        assert found.delta == pytest.approx(1e-6 * sum(math.exp(0.5 * i) for i in range(size)))

    def test_it_is_what_one_step_after_another_gives(self) -> None:
        """P(x0) <= e^eps P(x1) + delta, k times over."""
        delta = 0.0
        for _ in range(4):
            delta = math.exp(0.3) * delta + 1e-4
        assert group(Price(0.3, 1e-4), 4).delta == pytest.approx(delta)

    def test_no_overflow(self) -> None:
        assert group(Price(1000.0, 1e-5), 10).vacuous
        assert group(Price(8.0, 0.0), 10) == Price(80, 0.0)

    def test_what_floating_point_noise_does_not_guard_against_is_in_the_words(self) -> None:
        discrete = spend(2, "letters", mechanisms=(DiscreteGaussianMechanism(4.0),))
        assert "floating point" not in " ".join(Ledger().add(discrete).sentences())
        trained = spend(2, mechanisms=(GaussianMechanism(4.0),))
        words = " ".join(Ledger().add(discrete, trained).sentences())
        assert "Noise on tickets was drawn and added in floating point" in words
        assert "not against an attack on the last bits" in words

    def test_a_repeated_canary_is_in_the_words(self) -> None:
        found = promised(spend(0.1, group_size=3))
        assert found.group == group(Price(0.1, 1e-5), 3)
        (words, *_) = Ledger().add(spend(0.1, group_size=3)).sentences()
        assert "for a secret that fills 3 records: (ε, δ) = (0.3, 3.4e-05)" in words
        (words, *_) = Ledger().add(spend(8.0, group_size=10)).sentences()
        assert "for a secret that fills 10 records: no guarantee" in words


@needs_dp
class TestRdp:
    def test_gaussian_closed_form(self) -> None:
        found = accounting.epsilon([GaussianMechanism(3.0), GaussianMechanism(2.0, steps=2)], 1e-5)
        assert found == pytest.approx(gaussian_rdp([3.0, 2.0, 2.0], 1e-5), rel=0.01)

    def test_it_is_stated_where_it_is_smaller(self) -> None:
        own = gaussian_rdp([2.0], 1e-5)
        found = promised(*(spend(own, mechanisms=(GaussianMechanism(2.0),)) for _ in range(4)))
        assert found.added == Price(math.fsum([own] * 4), 4e-5)
        assert found.how == "rdp"
        assert found.price == found.rdp
        assert found.price.epsilon == pytest.approx(gaussian_rdp([2.0] * 4, 4e-5), rel=0.01)
        assert found.price.epsilon < 0.6 * found.added.epsilon

    def test_the_sum_is_stated_where_that_is_smaller(self) -> None:
        found = promised(*(spend(0.1, mechanisms=(PureEpsilon(0.2),)) for _ in range(2)))
        assert found.how == "sum"
        assert found.price == found.added
        assert found.rdp is not None

    def test_unknown_mechanisms_are_added_to_it(self) -> None:
        known = [spend(2.5, mechanisms=(GaussianMechanism(2.0),)) for _ in range(3)]
        found = promised(*known, spend(1.5, delta=1e-6))
        together = gaussian_rdp([2.0] * 3, 3e-5)
        assert found.price.epsilon == pytest.approx(together + 1.5, rel=0.01)
        assert found.price.delta == pytest.approx(3.1e-5)

    def test_poisson_sampling_against_both_accountants(self) -> None:
        """The figures that both libraries gave when they were compared."""
        mechanisms = [GaussianMechanism(1.1, 0.01, 1000)]
        assert accounting.epsilon(mechanisms, 1e-5) == pytest.approx(1.7118, rel=0.01)
        tight = accounting.epsilon(mechanisms, 1e-5, accountant="pld")
        assert tight == pytest.approx(1.5154, rel=0.01)

    def test_dp_accounting_agrees(self) -> None:
        import dp_accounting
        import dp_accounting.rdp

        parts = [(2.0, 0.02, 50), (1.5, 1.0, 2)]
        spends = [spend(3.9, mechanisms=(GaussianMechanism(*part),)) for part in parts]
        witness = dp_accounting.rdp.RdpAccountant()
        for sigma, rate, steps in parts:
            event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
            witness.compose(event, steps)
        expected = witness.get_epsilon(2e-5)
        assert promised(*spends).price.epsilon == pytest.approx(expected, rel=0.01)

    @pytest.mark.parametrize("kind", [PureEpsilon, LaplaceMechanism, SparseVector])
    @pytest.mark.parametrize("accountant", ["rdp", "pld"])
    def test_pure_mechanisms(self, kind: Any, accountant: Any) -> None:
        """Never above the sum; many small ones near sqrt(2 k ln(1 / delta)) eps."""
        assert accounting.epsilon([kind(1.0, 2)], 0.0, accountant=accountant) == 2.0
        few = accounting.epsilon([kind(1.0, 2)], 1e-6, accountant=accountant)
        assert 1.9 < few <= 2.0 + 1e-6
        many = accounting.epsilon([kind(0.01, 1000)], 1e-5, accountant=accountant)
        advanced = 0.01 * math.sqrt(2000 * math.log(1e5)) + 10 * (math.exp(0.01) - 1)
        assert 0.6 * advanced < many < advanced

    def test_no_mechanism_costs_nothing(self) -> None:
        assert accounting.epsilon([], 0.0) == 0.0

    def test_sampling_under_replace_one_is_added_up(self) -> None:
        sampled = spend(mechanisms=(GaussianMechanism(1.0, 0.1),), relation="replace_one")
        found = promised(sampled, sampled)
        assert (found.how, found.rdp) == ("sum", None)
        assert found.note is not None
        assert "Poisson sampling is accounted for under add_or_remove only" in found.note

    def test_refusals(self) -> None:
        with pytest.raises(AccountingError, match=r"delta must be in \(0, 1\), got 0"):
            accounting.epsilon([GaussianMechanism(1.0)], 0)

    @given(st.lists(st.floats(0.5, 20.0), min_size=2, max_size=4))
    @settings(max_examples=25, deadline=None)
    def test_never_below_the_largest_part(self, sigmas: list[float]) -> None:
        delta = 1e-5
        parts = [GaussianMechanism(sigma) for sigma in sigmas]
        alone = [accounting.epsilon([each], delta) for each in parts]
        spends = [spend(own, mechanisms=(each,)) for own, each in zip(alone, parts, strict=True)]
        found = promised(*spends).price
        assert found.delta == pytest.approx(len(parts) * delta)
        at_this_delta = (accounting.epsilon([each], found.delta) for each in parts)
        assert max(at_this_delta) - 1e-9 <= found.epsilon <= math.fsum(alone) + 1e-9


class TestWithoutTheExtra:
    @pytest.fixture(autouse=True)
    def missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "dp_accounting", None)
        monkeypatch.setattr(accounting, "available", lambda: False)

    def test_the_ledger_adds_up_and_says_so(self) -> None:
        ledger = Ledger().add(
            *(spend(1.0, mechanisms=(GaussianMechanism(9.0),)) for _ in range(2))
        )
        (words, *_) = ledger.sentences()
        assert words.startswith("(ε, δ) = (2, 2e-05) per record of data set tickets")
        assert "dp-accounting, which may find less, is missing: pip install" in words

    def test_the_error_names_the_extra(self) -> None:
        with pytest.raises(AccountingError, match=r"pip install 'evomerge\[dp\]'"):
            accounting.epsilon([GaussianMechanism(1.0)], 1e-5)


PARTS: st.SearchStrategy[PrivacySpend] = st.builds(
    spend,
    epsilon=st.floats(0, 50),
    dataset=st.sampled_from(["tickets", "letters", "calls"]),
    delta=st.floats(0, 0.01),
    group_size=st.integers(1, 4),
    relation=st.sampled_from(["add_or_remove", "replace_one"]),
    disjoint_from=st.sampled_from([(), ("archive",)]),
)

# what was run may be listed in part only, or be worth less than what is stated
LISTED: st.SearchStrategy[PrivacySpend] = st.builds(
    spend,
    epsilon=st.floats(0.1, 50),
    mechanisms=st.sampled_from([(GaussianMechanism(4.0),), (PureEpsilon(0.1),)]),
)


class TestProperties:
    @given(st.lists(PARTS, min_size=1, max_size=5), st.randoms(use_true_random=False))
    def test_order_changes_nothing(self, parts: list[PrivacySpend], random: Any) -> None:
        shuffled = random.sample(parts, len(parts))
        one, other = Ledger().add(*parts), Ledger().add(*shuffled)
        assert one.guarantees == other.guarantees
        assert one.sentences() == other.sentences()

    @given(st.lists(PARTS | LISTED, min_size=1, max_size=5))
    @settings(deadline=None)
    def test_never_below_the_largest_part(self, parts: list[PrivacySpend]) -> None:
        for name, each in Ledger().add(*parts).guarantees.items():
            assert each is not None
            own = [part for part in parts if part.dataset == name]
            assert each.price.epsilon >= max(part.epsilon for part in own)
            assert each.price.delta >= max(part.delta for part in own)

    @given(st.lists(PARTS, min_size=1, max_size=4), PARTS)
    def test_one_more_spend_costs_no_less(
        self, parts: list[PrivacySpend], more: PrivacySpend
    ) -> None:
        before = Ledger().add(*parts).guarantees
        after = Ledger().add(*parts, more).guarantees
        for name, each in before.items():
            later = after[name]
            assert each is not None
            assert later is not None
            assert later.price.epsilon >= each.price.epsilon
            assert later.price.delta >= each.price.delta

    @needs_dp
    def test_order_changes_no_bit_of_rdp(self) -> None:
        parts: list[Mechanism] = [
            GaussianMechanism(3.0, 0.1, 7),
            GaussianMechanism(1.7),
            LaplaceMechanism(0.3, 2),
        ]
        spends = [spend(3.0, mechanisms=(each,)) for each in parts]
        assert len({promised(*order).price for order in permutations(spends)}) == 1


class TestLedger:
    def test_an_expert_that_comes_twice_is_paid_once(self) -> None:
        record = PrivacyRecord((spend(), spend()))  # two equal releases of one expert
        once = Ledger().read(record, "expert 'a'", "sha-a")
        assert [each.release for each in once.spends] == ["sha-a/0", "sha-a/1"]
        assert once.read(record, "expert 'b'", "sha-a").spends == once.spends
        assert once.read(once.record(), "expert 'm'", "sha-m").spends == once.spends
        assert len(once.read(record, "expert 'c'", "sha-c").spends) == 4

    def test_a_release_with_another_price_counts_too(self) -> None:
        ledger = Ledger().add(spend(8, release="r"), spend(1, release="r"))
        assert promised(*ledger.spends).price.epsilon == 9

    def test_two_ledgers_share_what_both_list(self) -> None:
        expert, found = spend(release="sha-a/0"), spend(1, release="search 1")
        one = Ledger().add(expert).read(None, "expert 'b'", "sha-b")
        both = one.joined(Ledger().add(expert, found).read(None, "expert 'b'", "sha-b"))
        assert both.spends == (expert, found)
        assert both.unrecorded == ("expert 'b'",)

    def test_spends_without_release_always_count(self) -> None:
        assert len(Ledger().add(spend()).add(spend(), spend()).spends) == 3

    def test_without_a_record_it_is_not_private(self) -> None:
        ledger = Ledger().add(spend()).read(None, "expert 'code'", "sha")
        assert not ledger.private
        first, second, *_ = ledger.sentences()
        assert first == (
            "Not private: expert 'code' has no privacy record, so nothing is guaranteed about "
            "the data behind it."
        )
        assert second.startswith("(ε, δ) = (8, 1e-05) per record of data set tickets")
        assert second.endswith("for records that lie in no data without a record.")

    def test_it_stays_so_through_further_merges(self) -> None:
        first = Ledger().add(spend()).read(None, "expert 'code'", "sha")
        again = Ledger().read(first.record(), "expert 'm'", "sha-m")
        assert again.unrecorded == ("expert 'code' in expert 'm'",)

    def test_units_that_do_not_compose_make_it_not_private(self) -> None:
        ledger = Ledger().add(spend(), spend(unit="user"))
        assert not ledger.private
        assert ledger.everywhere is None
        assert ledger.sentences()[0].startswith("Not private: data set tickets is protected in")

    def test_records_of_nothing_private(self) -> None:
        ledger = Ledger().read(PrivacyRecord(), "expert 'a'", "sha")
        assert ledger.private
        assert ledger.sentences() == [
            "No private data went into it, by the records of its experts."
        ]

    def test_description(self) -> None:
        ledger = Ledger().add(spend(group_size=2), spend(3, "letters")).read(None, "x", "sha")
        again = Ledger.from_description(ledger.describe())
        assert again.record() == ledger.record()
        assert again.describe() == ledger.describe()
        assert ledger.describe()["data_sets"]["tickets"]["epsilon"] == 11

    def test_an_edited_description_is_refused(self) -> None:
        content = Ledger().add(spend()).describe() | {"private": False}
        with pytest.raises(PrivacyRecordError, match="it was edited after it was written"):
            Ledger.from_description(content)

    def test_epsilon_is_rounded_up(self) -> None:
        (words, *_) = Ledger().add(spend(1.00001, delta=1.001e-5)).sentences()
        assert words.startswith("(ε, δ) = (1.001, 1.1e-05) per record of data set tickets")


def static(*experts: str) -> MergePlan:
    return MergePlan(TaskArithmetic(), Whole(), experts, {"model": {"weight": 0.0, "scale": 1.0}})


class TestExpertsOf:
    POOL = ("a", "b", "c")

    @pytest.mark.parametrize(
        ("plan", "expected"),
        [
            (static("c", "a"), ("a", "c")),  # weight 0 counts all the same
            (LayerStackPlan((StackedLayer(0, "b"), StackedLayer(1, "base"))), ("b",)),
            (LayerStackPlan((StackedLayer(0, "merged"),), "c", static("a")), ("a", "c")),
            (DisplacedPlan(static("a"), static("b"), static("b")), ("a", "b")),
            (DisplacedPlan(static("a"), static("b"), PathPlan.__new__(PathPlan)), POOL),
        ],
    )
    def test_what_a_plan_names(self, plan: Plan, expected: tuple[str, ...]) -> None:
        assert experts_of(plan, self.POOL) == expected

    def test_a_path_reads_the_whole_pool(self) -> None:
        assert experts_of(PathPlan.__new__(PathPlan), self.POOL) == self.POOL

    def test_statistics_of_a_plan(self) -> None:
        method = RegMean("some/statistics", digests={})
        plan = replace(static("a"), method=method)
        assert statistics_of(DisplacedPlan(plan, plan, static("b"))) == [Path("some/statistics")]
        assert statistics_of(static("a")) == []
