"""Vision-language models against transformers' own forward pass, one row at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GitConfig,
    GitForCausalLM,
)

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.requests import Generate, Generated, Likelihood, Loglikelihood, Media
from evaluators.tasks.visual_choice import VisualChoice
from merging.lora.low_rank import LowRankProduct
from tests import builders
from tests.evaluators.conftest import asked_of_images, opened

WriteLines = Callable[..., str]
TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }}: {% for part in turn.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}answer:{% endif %}"
)


@pytest.mark.parametrize("chat", [False, True])
def test_choices_are_scored_as_transformers_scores_them(
    tmp_path: Path, write_lines: WriteLines, chat: bool
) -> None:
    base = builders.llava(tmp_path / "llava")
    if chat:
        (base / "chat_template.jinja").write_text(TEMPLATE)
    rows = asked_of_images(tmp_path, 3)
    resident = opened(base)
    evaluator = VisualChoice(resident.info, data=write_lines(rows))
    answers = Engine(resident).run(evaluator.items.requests)
    model: Any = AutoModelForImageTextToText.from_pretrained(base).eval()
    processor = AutoProcessor.from_pretrained(base)
    totals = []
    for row in rows:
        image = Image.open(tmp_path / row["image"])
        question = row["question"]
        prompt = f"user: <image>{question}answer:" if chat else f"<image>\n{question}"
        for choice in row["choices"]:
            answer = choice if chat else f" {choice}"
            given = processor(text=[prompt + answer], images=[image], return_tensors="pt")
            with torch.no_grad():
                log_probs = model(**given).logits[0].log_softmax(-1)
            ids, count = given["input_ids"][0], len(answer.encode())
            picked = log_probs[-count - 1 : -1].gather(1, ids[-count:, None])
            totals.append(float(picked.sum()))
    assert [a.total for a in answers if isinstance(a, Likelihood)] == pytest.approx(
        totals, rel=1e-5
    )
    scores = evaluator.score(answers)
    right = [
        float(max(range(3), key=totals[3 * i : 3 * i + 3].__getitem__) == row["label"])
        for i, row in enumerate(rows)
    ]
    assert scores["acc"].cases == pytest.approx(right)


def test_a_chat_begins_once(llava: Resident, tmp_path: Path, write_lines: WriteLines) -> None:
    """Its template writes what the tokenizer would add; no space stands before the answer."""
    base = tmp_path / "llava"
    tokenizer = llava.info.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(base)
    (base / "chat_template.jinja").write_text("{{ bos_token }}" + TEMPLATE)
    (row,) = asked_of_images(tmp_path, 1)
    asked = VisualChoice(llava.info, data=write_lines([row])).items.requests[0]
    image = {"type": "image", "image": Image.open(tmp_path / row["image"])}
    turn = {"role": "user", "content": [image, {"type": "text", "text": row["question"]}]}
    prompt = AutoProcessor.from_pretrained(base).apply_chat_template(
        [turn], tokenize=True, add_generation_prompt=True, return_dict=True
    )
    assert isinstance(asked, Loglikelihood)
    assert [list(asked.context)] == prompt["input_ids"]
    assert tokenizer.decode(asked.continuation) == row["choices"][0]


def test_the_image_counts(llava: Resident, tmp_path: Path, write_lines: WriteLines) -> None:
    rows = asked_of_images(tmp_path, 2)
    rows[1] = {**rows[0], "image": rows[1]["image"]}
    evaluator = VisualChoice(llava.info, data=write_lines(rows))
    answers = Engine(llava).run(evaluator.items.requests)
    totals = [answer.total for answer in answers if isinstance(answer, Likelihood)]
    assert all(abs(a - b) > 1e-3 for a, b in zip(totals[:3], totals[3:], strict=True))


def test_generation_sees_the_image(llava: Resident, tmp_path: Path) -> None:
    image = Image.open(tmp_path / asked_of_images(tmp_path, 1)[0]["image"])
    processor = AutoProcessor.from_pretrained(llava.info.directory)
    given = processor(text=["<image>\nwhat"], images=[image], return_tensors="pt")
    media = Media("image", {"pixel_values": given["pixel_values"]})
    prompt = tuple(given["input_ids"][0].tolist())
    (answer,) = Engine(llava).run([Generate(prompt, 6, options=(), media=media)])
    whole = llava.module.generate(**given, max_new_tokens=6, do_sample=False)
    assert isinstance(answer, Generated)
    expected = llava.info.tokenizer.decode(whole[0, len(prompt) :], skip_special_tokens=True)
    assert answer.text == expected


def test_a_population_is_scored_one_by_one(
    llava: Resident, tmp_path: Path, write_lines: WriteLines
) -> None:
    evaluator = VisualChoice(llava.info, data=write_lines(asked_of_images(tmp_path, 2)))
    draw = torch.Generator().manual_seed(0)
    names = [n for n, t in llava.module.named_parameters() if n.endswith("fc1.weight")][:1]
    names += [n for n, t in llava.module.named_parameters() if n.endswith("up_proj.weight")][:1]
    candidates = [
        {
            n: LowRankProduct(
                torch.randn(2, 32, generator=draw), torch.randn(64, 2, generator=draw)
            )
            for n in names
        }
        for _ in range(2)
    ]
    found = Engine(llava).run_population(evaluator.items.requests, candidates)
    for candidate, answers in zip(candidates, found, strict=True):
        written = opened(tmp_path / "llava")
        written.write({n: written.tensor(n) + d.b @ d.a for n, d in candidate.items()})
        expected = Engine(written).run(evaluator.items.requests)
        assert isinstance(answers, list)
        assert [a.total for a in answers if isinstance(a, Likelihood)] == pytest.approx(
            [a.total for a in expected if isinstance(a, Likelihood)], rel=1e-5
        )


def test_patches_and_kinds_of_tokens_go_with_qwen2_vl() -> None:
    """Its processor needs a package of videos, so what it gives is made here."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 260}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}
    torch.manual_seed(0)
    model = transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(
            text_config={**text, "rope_parameters": rope, "max_position_embeddings": 512},
            vision_config={**vision, "patch_size": 4, "temporal_patch_size": 2},
            image_token_id=259,
            video_token_id=258,
            vision_start_token_id=257,
            vision_end_token_id=256,
        )
    ).eval()
    builders.perturb(model, seed=1, scale=0.2)
    tokenizer = builders.byte_tokenizer()
    resident = Resident(model, tokenizer=tokenizer)
    asked, totals = [], []
    for number, rows in enumerate((4, 2)):  # images of 4 x 4 and of 2 x 4 patches
        pixels = torch.randn(rows * 4, 3 * 2 * 4 * 4, generator=torch.manual_seed(number))
        context = (1, 257, *[259] * rows, 256, *tokenizer.encode("what is it"))
        answer = tuple(tokenizer.encode(" fox" * (number + 1)))
        ids = torch.tensor([context + answer])
        given = {
            "pixel_values": pixels,
            "image_grid_thw": torch.tensor([[1, rows, 4]]),
            "mm_token_type_ids": (ids == 259).int(),
        }
        asked.append(Loglikelihood(context, answer, Media(str(number), given)))
        with torch.no_grad():
            log_probs = model(input_ids=ids, **given).logits[0].log_softmax(-1)
        places = range(len(context), len(context) + len(answer))
        totals.append(sum(float(log_probs[i - 1, ids[0, i]]) for i in places))
    answers = Engine(resident).run(asked)
    assert [a.total for a in answers if isinstance(a, Likelihood)] == pytest.approx(
        totals, rel=1e-5
    )


def test_what_cannot_see_is_refused(
    llama: Resident, llava: Resident, tmp_path: Path, write_lines: WriteLines
) -> None:
    rows = asked_of_images(tmp_path, 2)
    with pytest.raises(ValueError, match="processor"):
        VisualChoice(llama.info, data=write_lines(rows))
    settings = tmp_path / "llava" / "processor_config.json"
    settings.write_text(json.dumps({"processor_class": "Qwen2VLProcessor"}))
    with pytest.raises(ValueError, match="processor cannot be opened"):
        VisualChoice(llava.info, data=write_lines(rows))


def test_logits_of_an_image_are_not_taken_for_those_of_the_text() -> None:
    """GIT puts an image's states in front of the text's, without tokens that stand for them."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GitConfig(
        vocab_size=64,
        intermediate_size=16,
        vision_config={**sizes, "intermediate_size": 16, "image_size": 8, "patch_size": 4},
        **sizes,
    )
    resident = Resident(GitForCausalLM(config).eval(), tokenizer=None, max_length=32)
    media = Media("image", {"pixel_values": torch.zeros(1, 3, 8, 8)})
    with pytest.raises(ValueError, match=r"GitForCausalLM gives logits .* is not known"):
        Engine(resident).run([Loglikelihood((5, 6), (7, 8), media)])
