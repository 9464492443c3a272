"""Metric privacy adds up by eta where vectors are the same, and is never an (epsilon, delta)."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from merging.checkpoints.mechanisms import PrivacyRecordError, PureEpsilon
from merging.checkpoints.metric_privacy import MetricNoise
from merging.checkpoints.privacy_record import (
    PrivacyRecord,
    PrivacySpend,
    read_record,
    write_record,
)
from merging.privacy.composition import NO_GUARANTEE, Price, group, guarantee
from merging.privacy.ledger import Ledger
from merging.privacy.price_list import DialError, PriceList

NOISE = MetricNoise("word embeddings of abc", 10.0, 10.0, 0.5, "its rows")


def noised(
    noise: MetricNoise = NOISE, dataset: str = "reviews", release: str = "states 1", **changes: Any
) -> PrivacySpend:
    values: dict[str, Any] = {"what": "states", "release": release, "metric": noise, **changes}
    return PrivacySpend(dataset, math.inf, 0.0, "metric privacy", "per token", **values)


def spend(epsilon: float = 2.0, dataset: str = "tickets", **changes: Any) -> PrivacySpend:
    values: dict[str, Any] = {"mechanisms": (PureEpsilon(epsilon),), **changes}
    return PrivacySpend(dataset, epsilon, 0.0, "sum", "1", **values)


def test_the_ledger_says_what_is_promised_and_what_is_not() -> None:
    ledger = Ledger().add(noised())
    assert not ledger.private
    assert ledger.sentences()[:3] == [
        "Not private in terms of (ε, δ): of data set reviews noised states of tokens were given "
        "out, which bounds no (ε, δ) of a record; labels and the numbers of tokens were sent as "
        "they are.",
        "Metric privacy per token of data set reviews: two tokens of one budget whose word "
        "embeddings of abc are at Euclidean distance r are told apart by at most exp(η r), "
        "η = 10; among its rows the nearest of another token is 0.5 away on average, where that "
        "is exp(5).",
        "Over the tokens of a sentence the distances add up; they hold for exact arithmetic, "
        "noise was added in floating point.",
    ]
    assert "(ε, δ) = (" not in " ".join(ledger.sentences())


@pytest.mark.parametrize("mine", [noised(), noised(replace(NOISE, budgets="labels"))])
def test_it_is_never_an_epsilon_of_records(mine: PrivacySpend) -> None:
    """However it is composed: alone, with releases that have one, in groups, by any relation."""
    cheap = spend(0.1, "reviews")
    for spends in (
        [mine],
        [mine, cheap],
        [mine, cheap, spend(0.1, "reviews")],
        [mine, spend(0.1, "reviews", relation="replace_one", group_size=3)],
        [mine, replace(cheap, delta=1e-5, relation="replace_one")],
        [mine, spend(0.1, "tickets")],  # nobody declared them disjoint
    ):
        for dataset in {one.dataset for one in spends}:
            found = guarantee(dataset, spends)
            assert found is not None
            assert found.price.vacuous
            assert found.rdp is None
            assert found.group is None or found.group.vacuous
            json.dumps(found.to_json(), allow_nan=False)
        assert not Ledger().add(*spends).private
    assert group(Price(math.inf, 0.0), 3) == NO_GUARANTEE
    apart = [mine, spend(0.1, "tickets", disjoint_from=("reviews",))]
    found = guarantee("tickets", apart)
    assert found is not None
    assert found.price == Price(0.1, 0.0)


def test_etas_add_up_where_an_example_is_noised_anew() -> None:
    """10 + 5 over one layer; another layer beside it; the same draw read twice counts once."""
    ledger = Ledger().add(noised(), noised(replace(NOISE, eta=5.0, least_eta=5.0), release="2"))
    words = " ".join(ledger.add(noised()).sentences())
    assert "η = 15, the sum of 2 releases noised anew" in words
    assert "that is exp(7.5)" in words
    deeper = replace(NOISE, space="states behind block 2")
    words = " ".join(ledger.add(noised(deeper)).sentences())
    assert "η = 15, the sum of 2 releases" in words
    assert "states behind block 2 are at Euclidean distance r are told apart by" in words
    assert "the bounds of these 2 layers multiply" in words
    words = " ".join(Ledger().add(noised(), noised(dataset="letters")).sentences())
    assert "Sentences of letters that lie in reviews too" in words
    other = noised(dataset="letters", disjoint_from=("reviews",))
    assert "too, which nobody" not in " ".join(Ledger().add(noised(), other).sentences())


def test_budgets_are_told_and_what_their_counts_cost() -> None:
    own = replace(NOISE, least_eta=3.0, budgets="labels")
    words = " ".join(Ledger().add(noised(own)).sentences())
    assert "(η from 3 to 10) follow from counts of the labelled sentences and tell of lab" in words
    own = replace(own, budgets="noised_counts")
    words = " ".join(Ledger().add(noised(own), spend(1.5, "reviews")).sentences())
    assert "(η from 3 to 10) follow from counts that were released with noise" in words
    assert "and alone: (ε, δ) = (1.5, 0) per record of data set reviews" in words


def test_directions_that_follow_from_the_training_sentences_leave_these_without_a_bound() -> None:
    own = replace(NOISE, learned=True)
    assert MetricNoise.from_json(own.to_json()) == own
    older = {name: value for name, value in NOISE.to_json().items() if name != "learned"}
    assert MetricNoise.from_json(older) == NOISE
    told = "it holds for the sentences asked about, not for those trained on."
    assert [told in " ".join(Ledger().add(noised(n)).sentences()) for n in (own, NOISE)] == [1, 0]


def test_it_survives_the_file_beside_the_weights_and_further_merges(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    ledger = Ledger().add(noised(), spend(1.5, "reviews"))
    write_record(tmp_path, ledger.record(), words=ledger.sentences())
    record = read_record(tmp_path)
    assert record == ledger.record()
    assert record is not None
    merged = Ledger().read(record, "expert 'a'", "sha-a").read(record, "expert 'b'", "sha-b")
    assert merged.spends[0] == noised()
    described = merged.describe()
    assert Ledger.from_description(described).describe() == described
    assert described["data_sets"]["reviews"]["epsilon"] is None


def test_records_without_metric_noise_are_as_they_were() -> None:
    assert "metric" not in PrivacyRecord((spend(),)).to_json()["spends"][0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epsilon": 3.0}, "metric privacy bounds no epsilon"),
        ({"metric": {}}, "metric: 'space' is missing"),
        ({"metric": None}, "metric: expected a JSON object"),
        ({"metric": {**NOISE.to_json(), "eta": 0}}, "eta must be above 0"),
        ({"metric": {**NOISE.to_json(), "least_eta": 11}}, "least_eta 11 is above eta 10"),
        ({"metric": {**NOISE.to_json(), "budgets": "x"}}, "budgets must be one of uniform"),
        ({"metric": {**NOISE.to_json(), "space": " "}}, "space must be text"),
        ({"metric": {**NOISE.to_json(), "learned": 1}}, "learned must be true or false"),
    ],
)
def test_records_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PrivacyRecordError, match=said):
        PrivacySpend.from_json({**noised().to_json(), **changes})
    with pytest.raises(PrivacyRecordError, match="epsilon"):
        replace(spend(), epsilon=math.inf)


def test_the_dial_refuses_it() -> None:
    ledger = Ledger().add(noised())
    with pytest.raises(DialError, match="leave it out of the dial"):
        PriceList({"a": ledger}, 1e-5)
