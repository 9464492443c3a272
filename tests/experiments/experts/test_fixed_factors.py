"""Training with fixed factors: what starts as the model, ends as one that has moved everywhere."""

from pathlib import Path

import pytest
import torch

from experiments.experts.sentences.training import sentence_losses
from experiments.experts.training.fixed_factors import Factored, factor, merge_factors
from experiments.experts.training.regime import Regime, TrainingPrivacy
from experiments.experts.training.train import train_on_losses
from tests import builders

TEXTS = ["one two three", "six ten seven", "word word", "a longer line of words"]


def classifier(path: Path) -> torch.nn.Module:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(  # type: ignore[no-any-return]
        builders.bert_classifier(path / "m", num_labels=3, initializer_range=0.5)
    )


def encoded(path: Path) -> tuple[object, list[dict[str, list[int]]]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path / "m")
    return tokenizer, [dict(tokenizer(text)) for text in TEXTS]


def test_a_factored_model_is_the_model_until_it_learns_and_merges_to_what_it_is(
    tmp_path: Path,
) -> None:
    pytest.importorskip("opacus")
    model = classifier(tmp_path).eval()
    tokenizer, records = encoded(tmp_path)
    losses_of = sentence_losses(tokenizer, records, [0, 1, 2, 1], positions=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain, _ = losses_of(model, range(4))
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() >= 2)
    spared = ("classifier", "bert.embeddings.token_type_embeddings")
    factor(model, 2, seed=0, spare=spared)
    torch.testing.assert_close(losses_of(model, range(4))[0], plain)
    privacy = TrainingPrivacy(1e-3, noise_multiplier=1.0, randomness="seed")
    regime = Regime(2, epochs=2, learning_rate=0.1, sampling="poisson", privacy=privacy)
    trained = train_on_losses(model, losses_of, 4, regime, seed=0, label="x")
    assert trained.spent is not None
    assert trained.spent.epsilon > 0
    learnt, _ = losses_of(model, range(4))
    merge_factors(model)
    assert not any(isinstance(module, Factored) for module in model.modules())
    torch.testing.assert_close(losses_of(model, range(4))[0], learnt, rtol=1e-4, atol=1e-5)
    after = model.state_dict()
    assert after.keys() == before.keys()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    matrices = {n for n, t in before.items() if t.dim() >= 2}
    assert moved == matrices


def test_positions_give_every_sentence_a_gradient_of_its_own(tmp_path: Path) -> None:
    """Without them opacus sees one table of positions for the lot."""
    private = pytest.importorskip("experiments.experts.training.private")
    model = classifier(tmp_path).eval()
    tokenizer, records = encoded(tmp_path)
    losses_of = sentence_losses(tokenizer, records, [0, 1, 2, 1], positions=True)
    table = model.get_submodule("bert.embeddings.position_embeddings").weight
    alone = []
    for number in range(4):
        (gradient,) = torch.autograd.grad(losses_of(model, [number])[0].sum(), [table])
        alone.append(gradient)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with private.per_record_gradients(model) as wrapped:
        losses_of(wrapped, range(4))[0].sum().backward()
        torch.testing.assert_close(table.grad_sample, torch.stack(alone), rtol=1e-3, atol=1e-5)
