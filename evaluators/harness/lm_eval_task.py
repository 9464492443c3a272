"""Tasks of EleutherAI's lm-evaluation-harness, prepared once and scored for every candidate."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import bits_per_byte, mean

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.harness.drawn import doc_digest
from evaluators.harness.encoding import RequestEncoder
from evaluators.harness.task_files import (
    choose_docs,
    hub_data,
    load_task,
    memoise_templates,
    set_generation,
    set_shots,
    shown_data,
)
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.requests import EvaluationError, Generated, Likelihood, Request, Response
from evaluators.tasks.encoding import check_fits, language_tokenizer
from evaluators.tasks.splits import ItemDraw


@dataclass(frozen=True, eq=False)
class _Document:
    """One of lm-eval's documents, its instances, and how many requests each of these makes."""

    doc: Any
    instances: Sequence[Instance] = field(repr=False)  # hold the last answers
    counts: Sequence[int]


class LmEvalTask:
    """One lm-eval task; its scores equal those of lm-eval's own command with its defaults.

    On purpose they differ where lm-eval would show an item its own answer as a few-shot example,
    or draws examples from items that are not taken; see `choose_docs`.

    Generated texts are those of lm-eval's Hugging Face model for one prompt at a time, with the
    base's generation config; what is sampled has a seed for every item and repeat.

    Metrics are named as in the task; where it has several answer filters, ``metric@filter``.
    Directions are the task's (``higher_is_better``).

    Args:
        task: name, path of a YAML file, or a task's configuration.
        include_path: directory with YAML files of other tasks than lm-eval's.
        metric: the main one; None: the task's first; ``-METRIC``: one that must be better when
            lower, ValueError where the task says otherwise.
        split: of the data set; None: the task's own (test, else validation).
        limit: most items, the first ones; None: all.
        num_fewshot: examples in every prompt; None: the task's own number.
        apply_chat_template: None: where the tokenizer has one.
        fewshot_as_multiturn: give examples as turns of the chat; None: if there is a template.
        gen_kwargs: replaces the task's generation options (``max_gen_toks``, ``until``, ...).
    """

    subset = on_subset

    def __init__(
        self,
        model: ModelInfo,
        *,
        task: str | Mapping[str, Any],
        include_path: str | None = None,
        metric: str | None = None,
        split: str | None = None,
        take: str | ItemDraw | None = None,
        limit: int | None = None,
        num_fewshot: int | None = None,
        apply_chat_template: bool | None = False,
        system_instruction: str | None = None,
        fewshot_as_multiturn: bool | None = None,
        gen_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        name = task if isinstance(task, str) else str(task.get("task"))
        tokenizer = language_tokenizer(model, f"lm-eval task {name!r}", encoder_decoder=True)
        if apply_chat_template is None:
            apply_chat_template = bool(tokenizer.chat_template)
        if apply_chat_template and not tokenizer.chat_template:
            raise ValueError(
                f"lm-eval task {name!r}: apply_chat_template is set, and the tokenizer has none"
            )
        if fewshot_as_multiturn and not apply_chat_template:
            raise ValueError(
                f"lm-eval task {name!r}: fewshot_as_multiturn needs apply_chat_template"
            )
        self._task: Any = load_task(task, include_path)
        set_shots(self._task, num_fewshot)
        set_generation(self._task, gen_kwargs)
        main = _main(self._task, None if metric is None else metric.removeprefix("-"))
        self.metrics = _ordered(_metrics(self._task), main, name)
        if metric is not None and metric.startswith("-"):
            _check_lower(name, self.metrics)
        docs, source, found = choose_docs(self._task, split=split, take=take, limit=limit)
        memoise_templates(self._task, docs)
        encoder = RequestEncoder(
            tokenizer, model.max_length, encoder_decoder=model.encoder_decoder
        )
        chat = {
            "system_instruction": system_instruction,
            "apply_chat_template": apply_chat_template,
            "fewshot_as_multiturn": (
                apply_chat_template if fewshot_as_multiturn is None else fewshot_as_multiturn
            ),
            "chat_template": encoder.apply_chat_template if apply_chat_template else None,
        }
        by_doc = [_instances(self._task, doc, i, chat) for i, doc in enumerate(docs)]
        encoded = iter(_encode(encoder, [i for instances in by_doc for i in instances], name))
        items = []
        for doc, instances in zip(docs, by_doc, strict=True):
            requests = [next(encoded) for _ in instances]
            target = _Document(doc, instances, [len(own) for own in requests])
            items.append(TaskItem(doc_digest(self._task, doc), tuple(chain(*requests)), target))
        self.items = ItemSet(source, tuple(items), shown_data(self._task), found)
        check_fits(self.items.requests, model.max_length, f"lm-eval task {name!r}")
        self._mean_bytes = _mean_bytes(self._task, docs)

    hub_task = "text-generation"

    @property
    def dataset(self) -> tuple[str, ...] | None:
        """Id of its data on the Hub, and their configuration; None: files of this machine."""
        return hub_data(self._task)

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns every metric; cases where it is a mean over items, or bits per byte.

        Where answers are generated, each states the share of them that was cut off.

        Raises:
            EvaluationError: a metric has no value for these answers, or overflows.
            ValueError: the task does not give a metric that it declares.
        """
        self._answer(responses)
        values: dict[str, list[Any]] = defaultdict(list)
        filters = [answer_filter.name for answer_filter in self._task._filters]
        for key in filters:
            for document in self.items.targets:
                answers = [instance.filtered_resps[key] for instance in document.instances]
                metrics = self._task.process_results(document.doc, answers)
                for metric, value in metrics.items():
                    values[_name(metric, key, filters)].append(value)
        cut_off = _cut_off(responses)
        return {metric: self._aggregate(metric, values, cut_off) for metric in self.metrics}

    @property
    def _by_doc(self) -> Sequence[Sequence[Instance]]:
        """lm-eval's own requests, document by document."""
        return [document.instances for document in self.items.targets]

    def _answer(self, responses: Sequence[Response]) -> None:
        """Puts the responses into lm-eval's instances; what the last candidate left is dropped."""
        waiting = iter(responses)
        instances = []
        for document, own in zip(self.items.targets, self._by_doc, strict=True):
            for instance, count in zip(own, document.counts, strict=True):
                instance.resps = _as_lm_eval(instance, list(islice(waiting, count)))
                instance.filtered_resps = {}
                instances.append(instance)
        self._task._instances = instances
        self._task.apply_filters()

    def _aggregate(
        self, metric: str, values: Mapping[str, list[Any]], cut_off: float | None
    ) -> Score:
        if metric not in values:
            raise ValueError(
                f"lm-eval task {self._task.task_name!r} declares metric {metric!r} but gives "
                f"{', '.join(values)}; correct its metric_list"
            )
        by_doc = values[metric]
        plain = metric.partition("@")[0]
        aggregate = self._task.aggregation().get(plain, mean)
        cases = None
        try:
            value = float(aggregate(by_doc))
            if aggregate is mean and len(by_doc) == len(self.items):
                cases = np.array(by_doc, dtype=np.float64)
            elif plain in self._mean_bytes:
                # -ll / (ln 2 * mean bytes)
                bits = np.array([-log_prob for log_prob, _ in by_doc]) / math.log(2)
                cases = bits / self._mean_bytes[plain]
        except (OverflowError, ValueError, ZeroDivisionError) as error:
            raise EvaluationError(
                f"metric {metric!r} of lm-eval task {self._task.task_name!r} has no value for "
                f"these answers ({type(error).__name__}: {error})"
            ) from error
        return Score(value, cases, cut_off=cut_off)


def _cut_off(responses: Sequence[Response]) -> float | None:
    known = [answer.cut_off for answer in responses if isinstance(answer, Generated)]
    told = [cut for cut in known if cut is not None]
    return float(np.mean(told)) if told else None


def _name(metric: str, key: str, filters: Sequence[str]) -> str:
    return metric if len(filters) == 1 else f"{metric}@{key}"


def _metrics(task: Any) -> dict[str, Direction]:
    filters = [answer_filter.name for answer_filter in task._filters]
    directions: dict[str, Direction] = {}
    for key in filters:
        for metric, higher in task.higher_is_better().items():
            if higher is None or metric == "bypass":
                raise ValueError(
                    f"lm-eval task {task.task_name!r}: metric {metric!r} has no direction; set "
                    "higher_is_better in its metric_list"
                )
            directions[_name(metric, key, filters)] = "maximize" if higher else "minimize"
    return directions


def _mean_bytes(task: Any, docs: Sequence[Any]) -> dict[str, float]:
    """Returns the mean bytes of all documents, by metric that is bits per byte.

    They do not depend on a model's answers, and are asked for with made-up ones.
    """
    metrics = [metric for metric, how in task.aggregation().items() if how is bits_per_byte]
    if not metrics or task.OUTPUT_TYPE != "loglikelihood_rolling":
        return {}
    made_up = [task.process_results(doc, [0.0]) for doc in docs]
    return {metric: float(np.mean([one[metric][1] for one in made_up])) for metric in metrics}


def _main(task: Any, metric: str | None) -> str | None:
    """Returns the name here of a metric given with the task's only filter, or without "none"."""
    plain, _, key = (metric or "").partition("@")
    filters = [answer_filter.name for answer_filter in task._filters]
    if filters == [key]:
        return plain
    bare = metric is not None and not key and len(filters) > 1
    return f"{metric}@none" if bare and "none" in filters else metric


def _check_lower(name: str, metrics: Mapping[str, Direction]) -> None:
    main, direction = next(iter(metrics.items()))
    if direction == "maximize":
        raise ValueError(
            f"lm-eval task {name!r}: a minus (a negative weight of mergekit-evolve) asks for a "
            f"worse {main}, and a search improves its scores: leave it, or the task, out"
        )


def _ordered(
    metrics: Mapping[str, Direction], main: str | None, name: str
) -> dict[str, Direction]:
    if main is not None and main not in metrics:
        raise ValueError(
            f"lm-eval task {name!r} has no metric {main!r}; it has {', '.join(metrics)}"
        )
    first = next(iter(metrics)) if main is None else main
    return {first: metrics[first], **metrics}


def _instances(task: Any, doc: Any, doc_id: int, chat: Mapping[str, Any]) -> list[Instance]:
    """Returns the document's instances, sorted by their index, as lm-eval builds them."""
    context = task.fewshot_context(
        doc, num_fewshot=task.config.num_fewshot, gen_prefix=task.doc_to_prefix(doc), **chat
    )
    built = task.construct_requests(
        doc=doc,
        ctx=context,
        metadata=(task.config.task, doc_id, task.config.repeats),
        apply_chat_template=chat["apply_chat_template"],
        chat_template=chat["chat_template"],
    )
    instances = built if isinstance(built, list) else [built]
    return sorted(instances, key=lambda instance: int(instance.idx))


def _encode(
    encoder: RequestEncoder, instances: Sequence[Instance], name: str
) -> list[list[Request]]:
    """Returns the requests of every instance."""
    kinds = {instance.request_type for instance in instances}
    if kinds == {"loglikelihood"}:
        return [[request] for request in encoder.loglikelihood(instances, disable_tqdm=True)]
    if kinds == {"loglikelihood_rolling"}:
        return [list(windows) for windows in encoder.loglikelihood_rolling(instances)]
    if kinds == {"generate_until"} and all(isinstance(one.args[0], str) for one in instances):
        copies = [one for one in instances for _ in range(one.repeats or 1)]
        encoded = iter(encoder.generate_until(copies))
        return [[next(encoded) for _ in range(one.repeats or 1)] for one in instances]
    raise ValueError(
        f"lm-eval task {name!r} asks in several turns or kinds ({', '.join(sorted(kinds))}); not "
        "supported"
    )


def _as_lm_eval(instance: Instance, responses: Sequence[Response]) -> list[Any]:
    """Returns the answers to one instance in lm-eval's form, one for each repeat."""
    texts = [response.text for response in responses if isinstance(response, Generated)]
    if texts:
        return texts
    parts = [response for response in responses if isinstance(response, Likelihood)]
    if instance.request_type == "loglikelihood_rolling":
        return [sum(part.total for part in parts)] * (instance.repeats or 1)
    return [(parts[0].total, parts[0].greedy)] * (instance.repeats or 1)
