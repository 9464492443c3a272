"""Finds lm-eval tasks and prepares them: options, items, few-shot examples."""

import copy
import difflib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import datasets
import jinja2
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind

from evaluators.harness.drawn import draw_docs
from evaluators.items import AND
from evaluators.tasks.data import take_range
from evaluators.tasks.splits import ItemDraw

_SHOT_SEED = 1234  # lm-eval's own, so that few-shot prompts equal those of its command line


def load_task(task: str | Mapping[str, Any], include_path: str | None) -> Any:
    """Returns one task with its data loaded.

    Args:
        task: a name, the path of a task's YAML file, or a task's configuration.
        include_path: directory with YAML files of own tasks; looked at first, as reading all of
            lm-eval's own takes seconds.

    Raises:
        ValueError: unknown, a group, in need of code execution or pictures, or its data cannot
            be had.
    """
    if isinstance(task, str):
        name = task
        spec: str | dict[str, Any] = task
        manager = _manager_of(task, include_path)
        _refuse_group(manager, task)
    else:
        if "task" not in task:
            raise ValueError("an lm-eval task's configuration needs the key 'task', its name")
        name, spec = str(task["task"]), copy.deepcopy(dict(task))
        manager = _index(include_path, defaults=False)
    built = _build(manager, spec, name)
    if getattr(built, "UNSAFE_CODE", False):
        raise ValueError(f"lm-eval task {name!r} executes code that models write; not supported")
    if getattr(built, "MULTIMODAL", False):
        raise ValueError(f"lm-eval task {name!r} shows pictures or sound; not supported")
    return built


def check_known(task: str, include_path: str | None) -> None:
    """Raises ValueError for a name that `load_task` would refuse; loads no data."""
    _refuse_group(_manager_of(task, include_path), task)


def set_shots(task: Any, num_fewshot: int | None) -> None:
    """Sets the number of few-shot examples; None: the task's own, else 0."""
    default = task.config.num_fewshot
    if num_fewshot is not None and default == 0 and num_fewshot != 0:
        raise ValueError(f"lm-eval task {task.task_name!r} fixes num_fewshot to 0")
    if num_fewshot is not None and num_fewshot < 0:
        raise ValueError(f"num_fewshot must be at least 0, got {num_fewshot}")
    task.set_config(
        key="num_fewshot", value=(default or 0) if num_fewshot is None else num_fewshot
    )
    task.set_fewshot_seed(seed=_SHOT_SEED)


def set_generation(task: Any, gen_kwargs: Mapping[str, Any] | None) -> None:
    """Replaces some of the task's generation options."""
    if not gen_kwargs:
        return
    if task.OUTPUT_TYPE != "generate_until":
        raise ValueError(
            f"gen_kwargs given, but lm-eval task {task.task_name!r} generates nothing: "
            f"its output type is {task.OUTPUT_TYPE}"
        )
    task.set_config(key="generation_kwargs", value=dict(gen_kwargs), update=True)


def choose_docs(
    task: Any, *, split: str | None, take: str | ItemDraw | None, limit: int | None
) -> tuple[list[Any], str, int]:
    """Returns the items to evaluate, the identity of their data, and how many these hold.

    Where few-shot examples come from the split that is evaluated, a prompt never shows the item
    itself: in lm-eval's draw, which may hold it, another one takes its place. Of a part of the
    split they are drawn from this part alone, so that no other panel's items stand in prompts.
    """
    name = task.task_name
    if limit is not None and limit < 1:
        raise ValueError(f"lm-eval task {name!r}: limit must be at least 1, got {limit}")
    if split is not None:
        if split not in task.dataset:
            raise ValueError(
                f"lm-eval task {name!r} has no split {split!r}; its data has "
                f"{', '.join(task.dataset)}"
            )
        task.set_config(key="test_split", value=split)
    if not len(task.eval_docs):
        raise ValueError(f"lm-eval task {name!r} has no items in its split")
    if isinstance(take, ItemDraw):
        docs, evaluated, found = draw_docs(task, take, split, _shots_split(task))
        data = AND.join(_data_identities(task, evaluated))
        return docs[:limit], f"{data}[{take.panel}]", found
    docs = list(task.eval_docs)
    chosen = take_range(take, len(docs), f"lm-eval task {name!r}")[:limit]
    whole = len(chosen) == len(docs)
    found, docs = len(docs), [docs[i] for i in chosen]
    evaluated = task.config.test_split or task.config.validation_split
    _hide_own_answers(task, docs, evaluated, whole=whole)
    data = AND.join(_data_identities(task, evaluated))
    return docs, f"{data}[{chosen.start}:{chosen.stop}]", found


def shown_data(task: Any) -> frozenset[str]:
    """Returns the identities of the data that few-shot examples are drawn from.

    None, if there are no examples, or the task's own file lists them.
    """
    shown = _shots_split(task)
    return frozenset() if shown is None else frozenset(_data_identities(task, shown))


def _shots_split(task: Any) -> str | None:
    """Returns the split that lm-eval draws few-shot examples from; None: it draws none."""
    config, source = task.config, getattr(task, "fewshot_cfg", None)
    named = None if source is None else source.split
    listed = source is not None and named is None and source.samples is not None
    if not config.num_fewshot or listed:
        return None
    split = named or config.training_split or config.validation_split or config.test_split
    return None if split is None else str(split)


def memoise_templates(task: Any, docs: list[Any]) -> None:
    """Renders the task's templates once for every item instead of once for every candidate."""
    names = ["doc_to_target"]
    if getattr(task.config, "doc_to_choice", None) is not None:
        names.append("doc_to_choice")
    if getattr(task, "multiple_input", 0):
        names.append("doc_to_text")
    for name in names:
        setattr(task, name, _remembered(getattr(task, name), docs))


def _remembered(render: Callable[..., Any], docs: list[Any]) -> Callable[..., Any]:
    rendered = {id(doc): render(doc) for doc in docs}  # the evaluator holds the items: ids stay

    def recall(doc: Any, template: Any = None) -> Any:
        if template is None and id(doc) in rendered:
            return copy.copy(rendered[id(doc)])
        return render(doc) if template is None else render(doc, template)

    return recall


class _OthersAnswers:
    """The draws of lm-eval's sampler, but for the item that is asked: another one replaces it."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._random = Random(_SHOT_SEED)

    def sample(self, n: int, eval_doc: Any = None) -> list[Any]:
        drawn = [doc for doc in self._sampler.sample(n) if doc != eval_doc]
        if len(drawn) < n:
            others = [doc for doc in self._sampler.df if doc != eval_doc and doc not in drawn]
            drawn += self._random.sample(others, n - len(drawn))
        return drawn


def _hide_own_answers(task: Any, docs: list[Any], evaluated: str | None, *, whole: bool) -> None:
    shots, config = task.config.num_fewshot, task.config
    source = getattr(task, "fewshot_cfg", None)
    if not shots or source is None or (source.split is None and source.samples is not None):
        return
    if _shots_split(task) != evaluated:
        return
    if len(docs) <= shots:
        raise ValueError(
            f"lm-eval task {task.task_name!r} draws its {shots} few-shot examples from the split "
            f"it is evaluated on, of which only {len(docs)} items are taken"
        )
    leaves_out = source.split == config.test_split
    source.split = config.test_split = evaluated  # lm-eval then says which item is asked
    if not whole:
        task.sampler.replace_df(docs)
    elif not leaves_out:
        task.sampler = _OthersAnswers(task.sampler)


def _data_identities(task: Any, split: str | None) -> list[str]:
    """Returns the paths of local files, as other evaluators do; else what lm-eval loads."""
    config, kwargs = task.config, task.config.dataset_kwargs or {}
    if config.dataset_path is None:
        return [f"lm-eval:{task.task_name}/{split}"]
    if not config.custom_dataset:
        found = _local_files(config.dataset_path, config.dataset_name, kwargs)
        if files := found.get(str(split)):
            return sorted({str(Path(file).resolve()) for file in files})
    parts = [config.dataset_path, config.dataset_name, kwargs, split]
    return ["/".join(str(part) for part in parts if part)]


def hub_data(task: Any) -> tuple[str, ...] | None:
    """Returns the id of a task's data on the Hub, and their configuration; None: they lie here.

    Also None where the task's own code loads them.
    """
    config, kwargs = task.config, task.config.dataset_kwargs or {}
    path = str(config.dataset_path or "")
    local = not path or Path(path).exists() or kwargs.keys() & {"data_dir", "data_files"}
    if local or config.custom_dataset:
        return None
    return (path, str(config.dataset_name)) if config.dataset_name else (path,)


def _local_files(path: str, name: str | None, kwargs: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns split to the files that `datasets` finds for it, in a directory or by patterns.

    Files of the hub are left out: whether they are known depends on the network.
    """
    named = {key: kwargs[key] for key in ("data_dir", "data_files") if kwargs.get(key)}
    if not named and not Path(path).is_dir():
        return {}
    found = datasets.load_dataset_builder(path, name, **named).config.data_files or {}
    local = {str(split): list(map(str, files)) for split, files in found.items()}
    return {split: files for split, files in local.items() if not any("://" in f for f in files)}


@functools.cache
def _index(include_path: str | None, *, defaults: bool) -> Any:
    return TaskManager(include_path=include_path, include_defaults=defaults)


def _manager_of(task: str, include_path: str | None) -> Any:
    local = _index(include_path, defaults=False)
    if task.endswith((".yaml", ".yml")) and not Path(task).is_file():
        raise ValueError(f"lm-eval task file {task} does not exist: correct its path")
    if task in local.task_index or task.endswith((".yaml", ".yml")):
        return local
    everything = _index(include_path, defaults=True)
    if task not in everything.task_index:
        near = difflib.get_close_matches(task, everything.all_tasks, n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        where = f" or in {include_path}" if include_path else " and no such file"
        own = "" if include_path else "; of one of your own give the path to its YAML file"
        raise ValueError(f"no lm-eval task {task!r} among its own{where}{hint}{own}")
    return everything


def _refuse_group(manager: Any, task: str) -> None:
    entry = manager.task_index.get(task)
    if entry is not None and entry.kind in (Kind.GROUP, Kind.TAG):
        members = ", ".join(sorted(entry.tags)[:5]) or "see lm-eval's YAML"
        raise ValueError(
            f"lm-eval task {task!r} is a group; name its tasks one by one ({members})"
        )


def _build(manager: Any, spec: str | dict[str, Any], name: str) -> Task:
    try:
        with _no_progress_bars():
            tasks = manager.load([spec])["tasks"]
    except OSError as error:
        raise ValueError(
            f"the data of lm-eval task {name!r} cannot be read ({_first_line(error)}); if it is a "
            "hub data set, run once with network access to fill the cache, else correct the "
            "path in dataset_kwargs"
        ) from error
    except StopIteration as error:
        raise ValueError(f"lm-eval task {name!r} reads an empty data file") from error
    except (ValueError, LookupError, TypeError, AttributeError, jinja2.TemplateError) as error:
        raise ValueError(
            f"lm-eval cannot build task {name!r} ({type(error).__name__}: {_first_line(error)}); "
            "check its splits, metrics, templates and data"
        ) from error
    if len(tasks) != 1:
        raise ValueError(
            f"lm-eval task {name!r} stands for {len(tasks)} tasks; name them one by one"
        )
    return next(iter(tasks.values()))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    silent = datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            datasets.utils.enable_progress_bars()
