"""Membership inference: was a text trained on? By its losses, alone or beside other models'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.intervals import auc_interval, share_interval
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.memorization.blind import blind_interval, blind_scores
from evaluators.memorization.likelihood_ratio import likelihood_ratio
from evaluators.memorization.reference_losses import read_reference
from evaluators.memorization.roc import advantage, auc, placements, true_positives_at
from evaluators.memorization.windows import window_votes
from evaluators.requests import PerToken, Response, TokenStatistics
from evaluators.tasks.data import Line, data_path, digest, read_lines, take_items
from evaluators.tasks.encoding import encode_text, language_tokenizer, prefix_token
from evaluators.tasks.splits import ItemDraw
from merging.arrays import Flags, Matrix, Vector

Attack: TypeAlias = Literal["loss", "reference", "min_k", "min_k_plus", "wbc", "lira"]
_ATTACKS = ("loss", "reference", "min_k", "min_k_plus", "wbc", "lira")
_REFERENCES = {"reference": 1, "wbc": 1, "lira": 2}  # how many each attack needs
_LEAST_DEVIATION = 1e-6  # nats; a distribution without spread has none to measure by


@dataclass(frozen=True)
class _Text:
    """Whether a text is a member, and each reference model's losses of its tokens."""

    member: bool
    references: tuple[tuple[float, ...], ...]


class Membership:
    """How well can members, texts that were trained on, be told from texts that were not?

    Every attack gives a text a score, higher for a likelier member. loss: log-probability per
    token. reference: the same, less that of a reference model, usually the base before it was
    tuned, so that texts that are easy for everyone look no longer like members. min_k: mean of
    the `k` share of tokens with the smallest log-probabilities. min_k_plus: mean of the `k`
    share with the smallest ``(log p - mu) / sigma``, mu and sigma the mean and standard deviation
    of log p over the vocabulary where the token stands. wbc: votes of windows in which the model
    is surer than the reference, `window_votes`. lira: how much likelier than by two or more
    reference models, by their covariance, `likelihood_ratio`. reference and wbc take several
    reference models by the mean of their losses.

    Metrics of each attack: ``_auc``; ``_tpr_1`` and ``_tpr_10``, the share of members that is
    found where at most 1 % or 10 % of the others are taken for members; ``_advantage``, the
    largest difference between both shares over all thresholds. The cases of an area are its
    pseudo-values: ``A + N / n (V - A)`` with V an item's placement on the other side, n the items
    on its own and N all; their mean is the area A, and their variance over N DeLong's of the
    area. An interval of a share takes its threshold as given; an advantage has none.

    blind is an attack that is never left out and never sees the model: `blind_scores`. Where the
    interval of ``blind_auc`` lies above 0.5, members differ from the others by themselves, and
    what the attacks find is no memorization.

    A text longer than the model is cut at its end.

    Args:
        data: JSON-lines file, a text in each line and whether it is a member, true or false.
        attacks: which, the main one first.
        reference: file that `write_reference` wrote for the same texts with the reference
            model, or one for each of several; None: none, and no such attack.
        k: share of a text's tokens that both Min-K attacks average, in (0, 1].

    Source: loss: Yeom et al. 2018, arXiv 1709.01604. reference: Carlini et al. 2021, arXiv
        2012.07805. min_k: Shi et al. 2024, arXiv 2310.16789. min_k_plus: Zhang et al. 2024,
        arXiv 2404.02936, eq. (3) and (4); at least one token is averaged. wbc,
        lira, blind: where they stand.
    """

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        split: str | None = None,
        text_field: str = "text",
        member_field: str = "member",
        attacks: Sequence[Attack] = ("loss", "min_k", "min_k_plus"),
        reference: str | Sequence[str] | None = None,
        k: float = 0.2,
        take: str | ItemDraw | None = None,
    ) -> None:
        path = data_path(data, split)
        files = [reference] if isinstance(reference, str) else list(reference or ())
        _check_options(path, attacks, files, k)
        tokenizer = language_tokenizer(model, f"membership inference on {path.name}")
        read = [
            (line, line.text(text_field), _member(line, member_field)) for line in read_lines(path)
        ]
        taken = take_items(read, take, path, key=lambda one: (digest(one[1]), one[2]))
        self._attacks = tuple(attacks)
        self._k = k
        self.metrics: Mapping[str, Direction] = {
            f"{attack}_{metric}": "minimize"
            for attack in (*attacks, "blind")
            for metric in ("auc", "tpr_1", "tpr_10", "advantage")
        }
        members = [member for _, _, member in taken.values]
        digests = [digest(text) for _, text, _ in taken.values]
        _check_digests(path, digests)
        _check_both(str(path), members)
        limit, prefix = model.max_length, prefix_token(tokenizer)
        tokens = [encode_text(tokenizer, text, line)[:limit] for line, text, _ in taken.values]
        counts = dict(zip(digests, map(len, tokens), strict=True))
        losses = [read_reference(Path(file), counts) for file in files]
        items = []
        for content, member, text in zip(digests, members, tokens, strict=True):
            known = _Text(member, tuple(each[content] for each in losses))
            items.append(TaskItem(content, (TokenStatistics((prefix, *text)),), known))
        self.items = ItemSet(taken.source, tuple(items), found=taken.found)
        self._blind = self._without_model()

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns every attack's metrics and the blind one's, each with its chance."""
        answers = [response for response in responses if isinstance(response, PerToken)]
        members = np.array([text.member for text in self.items.targets])
        scores: dict[str, Score] = {}
        for attack in self._attacks:
            values = self._attack(attack, answers)
            scores |= {f"{attack}_{k}": v for k, v in _scores(values, members).items()}
        return scores | self._blind

    def losses(self, responses: Sequence[Response]) -> dict[str, list[float]]:
        """Returns every text's digest and its tokens' losses, in nats: a reference's content."""
        answers = [response for response in responses if isinstance(response, PerToken)]
        values = ((-answer.log_probs).tolist() for answer in answers)
        return dict(zip(self.items.digests, values, strict=True))

    def subset(self, indices: Sequence[int]) -> Membership:
        """Returns the same on some of the texts; raises ValueError if all or none are members."""
        part = on_subset(self, indices)
        members = [text.member for text in part.items.targets]
        _check_both(f"a subset of {self.items.source}", members)
        part._blind = part._without_model()
        return part

    def _without_model(self) -> dict[str, Score]:
        members = np.array([text.member for text in self.items.targets])
        asked = [each for each in self.items.requests if isinstance(each, TokenStatistics)]
        scores = _scores(blind_scores([each.tokens[1:] for each in asked], members), members)
        interval = blind_interval(scores["auc"].value, int(members.sum()), int((~members).sum()))
        scores["auc"] = replace(scores["auc"], interval=interval)
        return {f"blind_{metric}": score for metric, score in scores.items()}

    def _attack(self, attack: Attack, answers: Sequence[PerToken]) -> Vector:
        """Returns ``(items,)`` scores, higher for a likelier member."""
        if attack == "min_k":
            return np.array([min_k(answer.log_probs, self._k) for answer in answers])
        if attack == "min_k_plus":
            return np.array([min_k_plus(answer, self._k) for answer in answers])
        log_probs = [answer.log_probs for answer in answers]
        if attack == "loss":
            return np.array([each.mean() for each in log_probs])  # mean log p(x)
        losses: list[Matrix] = [np.array(text.references) for text in self.items.targets]
        if attack == "lira":
            return likelihood_ratio(log_probs, [-each for each in losses])
        gains = [own + other.mean(0) for own, other in zip(log_probs, losses, strict=True)]
        if attack == "wbc":
            return np.array([window_votes(each) for each in gains])
        return np.array([each.mean() for each in gains])  # mean log p(x) - mean log p_reference(x)


def min_k(values: Vector, k: float) -> float:
    """Returns the mean of the smallest `k` share of ``(tokens,)``, at least one of them."""
    count = max(1, int(len(values) * k))  # |S| = max(1, floor(k T))
    return float(np.partition(values, count - 1)[:count].mean())  # sum_{t in S} v_t / |S|


def min_k_plus(answer: PerToken, k: float) -> float:
    """Returns `min_k` of the log-probabilities, standardised over the vocabulary."""
    sigma = np.maximum(answer.deviations, _LEAST_DEVIATION)
    return min_k((answer.log_probs - answer.means) / sigma, k)  # eq. (3): (log p - mu) / sigma


def _scores(values: Vector, members: Flags) -> dict[str, Score]:
    inside, outside = values[members], values[~members]
    area = auc(inside, outside)
    cases = np.empty(len(values))
    for side, placed in zip((members, ~members), placements(inside, outside), strict=True):
        cases[side] = area + len(values) / len(placed) * (placed - area)  # A + N / n (V - A)
    ends = auc_interval(area, len(inside), len(outside))
    scores = {"auc": Score(area, cases, 0.5, ends, own_cases=False)}
    for percent in (1, 10):
        hits, chance = true_positives_at(inside, outside, percent / 100)
        interval = share_interval(int(hits.sum()), len(hits))
        scores[f"tpr_{percent}"] = Score(float(hits.mean()), None, chance, interval)
    gap, chance = advantage(inside, outside)
    return scores | {"advantage": Score(gap, None, chance)}


def _check_options(path: Path, attacks: Sequence[str], files: Sequence[str], k: float) -> None:
    unknown = [attack for attack in attacks if attack not in _ATTACKS]
    if unknown or not attacks or len(set(attacks)) < len(attacks):
        raise ValueError(
            f"membership inference on {path.name}: attacks must be some of "
            f"{', '.join(_ATTACKS)}, each once, got {list(attacks)}"
        )
    needed = max(_REFERENCES.get(attack, 0) for attack in attacks)
    if len(files) < needed or (files and not needed):
        raise ValueError(
            f"membership inference on {path.name}: attacks reference, wbc (one or more) and lira "
            f"(two or more) and the files reference={files} need each other; write_reference "
            "writes them"
        )
    if not 0 < k <= 1:
        raise ValueError(f"membership inference on {path.name}: k must lie in (0, 1], got {k}")


def _member(line: Line, field: str) -> bool:
    value = line.fields.get(field)
    if not isinstance(value, bool):
        raise ValueError(
            f"{line}: field {field!r} must be true for a member or false, got {value!r:.80}"
        )
    return value


def _check_digests(path: Path, digests: Sequence[str]) -> None:
    seen: set[str] = set()
    for number, content in enumerate(digests):
        if content in seen:
            raise ValueError(f"{path} item {number}: its text comes twice; remove the line")
        seen.add(content)


def _check_both(what: str, members: Sequence[bool]) -> None:
    if all(members) or not any(members):
        raise ValueError(
            f"{what} holds {sum(members)} members among {len(members)} texts: at least one "
            "member and one other text are needed"
        )
