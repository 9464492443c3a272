"""Success and privacy are those of hand counts; blind attackers know what public texts tell."""

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluators.evaluator import Score
from evaluators.inversion.blind import likeliest
from evaluators.inversion.scores import AttributeInference, Inversion
from merging.seeding import generator

CLS, SEP, VOCABULARY = 0, 1, 40


def texts(count: int, seed: int, header: tuple[int, ...] = ()) -> list[Tensor]:
    draw = generator("inversion", seed)
    sizes = torch.randint(4, 12, (count,), generator=draw).tolist()
    bodies = [torch.randint(2, VOCABULARY, (size,), generator=draw).tolist() for size in sizes]
    return [torch.tensor([CLS, *header, *body, SEP]) for body in bodies]


def between(score: Score, value: float) -> bool:
    assert score.interval is not None
    return score.interval[0] <= value <= score.interval[1]


def test_success_is_the_mean_share_of_a_text_and_privacy_the_rest() -> None:
    private = [torch.tensor([CLS, 5, 6, SEP]), torch.tensor([CLS, 7, 8, 9, 7, SEP])]
    public = [torch.tensor([CLS, 7, 7, SEP]), torch.tensor([CLS, 5, 6, SEP])]
    attack = Inversion(private, public=public, everywhere=(CLS, SEP))
    scores = attack.score([torch.tensor([3, 5, 3, 3]), torch.tensor([3, 7, 8, 9, 3, 3])])
    success, privacy = scores["success"], scores["privacy"]
    assert success.cases is not None
    assert success.cases.tolist() == [0.5, 0.75]  # special tokens are not scored
    assert success.value == 0.625
    assert privacy.value == pytest.approx(1 - success.value)
    assert success.interval is not None
    assert privacy.interval == pytest.approx([1 - end for end in success.interval[::-1]])
    assert success.chance == scores["trivial_success"].value == 0.25  # 7 7 / 7 7 7 7
    assert scores["known"].value == 0.5
    assert attack.score(private)["privacy"].value == 0.0
    with pytest.raises(ValueError, match="as many tokens"):
        attack.score(private[:1])
    with pytest.raises(ValueError, match="public text 0 has no token"):
        Inversion(private, public=[torch.tensor([CLS])], everywhere=(CLS, SEP))


def test_blind_is_at_chance_on_independent_texts_and_above_where_public_ones_tell() -> None:
    alone = Inversion(texts(400, 1), public=texts(1000, 2), everywhere=(CLS, SEP)).score(
        texts(400, 1)
    )
    assert between(alone["blind_success"], 1 / (VOCABULARY - 2))
    assert between(alone["trivial_success"], 1 / (VOCABULARY - 2))
    assert alone["known"].value == 0
    header = (7, 8, 9)
    private = texts(400, 1, header)
    told = Inversion(private, public=texts(1000, 2, header), everywhere=(CLS, SEP)).score(private)
    share = np.mean([3 / (len(text) - 2) for text in private])
    assert told["blind_success"].interval is not None
    assert told["blind_success"].value > share
    assert told["blind_success"].interval[0] > told["trivial_success"].value + 0.1
    # a split that leaks: lengths tell texts, and public ones hold them several times
    distinct = [torch.arange(2, 4 + size) % VOCABULARY for size in range(5, 35)]
    leak = Inversion(distinct, public=4 * distinct).score(distinct)
    assert leak["known"].value == 1.0
    assert leak["blind_success"].value > 0.95


def test_attributes_are_scored_beside_the_majority_and_the_lengths() -> None:
    rng = np.random.default_rng(0)
    attributes, free = rng.integers(0, 2, 600), rng.integers(5, 15, 600)
    tied = free + 10 * attributes
    for lengths, expected in ((free, 0.5), (tied, 1.0)):
        public = attributes[:300].tolist(), lengths[:300].tolist()
        attack = AttributeInference(
            attributes[300:].tolist(), lengths[300:].tolist(), public=public
        )
        scores = attack.score([1] * 300)
        assert scores["success"].value == pytest.approx(attributes[300:].mean())
        assert scores["trivial_success"].value == pytest.approx(0.5, abs=0.08)
        assert between(scores["blind_success"], expected)


def test_the_likeliest_value_is_that_of_counts() -> None:
    values = np.array([3, 3, 5, 5, 5, 0])
    keys = np.array([1, 1, 1, 2, 2, 9])
    asked = np.array([1, 2, 9, 4])
    one = likeliest(values, [(keys, asked)])
    assert one[:3].tolist() == [3, 5, 0]
    whole = (0 * keys, 0 * asked)
    assert likeliest(values, [whole, (keys, asked)]).tolist() == [5, 5, 5, 5]
    values, keys = np.repeat(values, 50), np.repeat(keys, 50)
    assert likeliest(values, [(0 * keys, 0 * asked), (keys, asked)]).tolist() == [3, 5, 0, 5]
