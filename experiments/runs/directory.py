"""A run's directory: its identity, its lock, and how a second start finds the first."""

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf

from experiments.runs.errors import UserError
from experiments.runs.files import read_json
from merging.files import write_text


class RunLocked(UserError):  # noqa: N818
    """Another process is at work in the run's directory."""


_OWNER = "run.owner"
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # Lustre's, NFS's
_LOGS_BYTES = 50e6  # room for logs and reports

# What may differ between two starts of the same run: where files go, who watches, what is kept of
# winner and population, and what a run that was stopped for want of memory goes on with.
_NOT_IDENTITY = (
    *("out", "runs", "tracker", "cache", "save_model", "adapter_rank", "zoo"),
    *("threads", "execution", "stream", "keep_gb", "experiment_file"),
    *("tasks", "splits"),  # in the panels, by then
    *("store", "save", "suffix"),  # where deduplicated models go
)


def resolved(config: DictConfig) -> dict[str, Any]:
    """Returns the configuration as plain values."""
    options = OmegaConf.to_container(config, resolve=True)
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}


def identity_config(config: DictConfig) -> dict[str, Any]:
    """Returns the resolved configuration without what does not change the result."""
    options = {k: value for k, value in resolved(config).items() if k not in _NOT_IDENTITY}
    if baselines := options.get("baselines"):  # more may be read of a run that is finished
        baselines.pop("report", None)
    return {key: _without_cache(value) for key, value in options.items()}


def _without_cache(value: Any) -> Any:
    """Returns a part of the configuration without where its parts keep what they make."""
    if isinstance(value, Mapping):
        return {k: _without_cache(each) for k, each in value.items() if k != "cache_dir"}
    return value


def run_identity(config: DictConfig) -> str:
    """Returns 12 hex digits that name the run: the digest of its resolved configuration."""
    text = json.dumps(identity_config(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plan_run(config: DictConfig, strategy: str) -> Path:
    """Returns the run's directory, new or the same configuration's from an earlier start.

    Makes nothing, so that a run that is refused later leaves nothing behind.

    Raises:
        UserError: the directory belongs to another configuration, holds something else, cannot
            be written, or its disk is full.
    """
    identity = run_identity(config)
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{config.name}-{strategy}-s{config.seed}")
    path = Path(config.out) if config.out else Path(config.runs) / f"{name}-{identity[:8]}"
    if (path / "config.yaml").exists():
        _refuse_other(path, OmegaConf.load(path / "config.yaml"), config)
    elif path.exists() and not path.is_dir():
        raise UserError(f"out={path} is a file: name a directory")
    elif path.exists() and not all(_is_ours(entry.name) for entry in path.iterdir()):
        raise UserError(f"out={path} holds something else: name a new directory")
    check_writable(path, "out" if config.out else "runs")
    return path


def _is_ours(name: str) -> bool:
    """Whether a start that was killed before it wrote config.yaml may have left a file."""
    return name.rstrip("~") in ("run.lock", _OWNER) or (
        name.startswith(".") and name.endswith(".tmp")
    )


def check_writable(path: Path, option: str, content_bytes: int = 0) -> None:
    """Raises UserError unless `path` can be made and filled; a parent that is missing is made.

    Args:
        option: what the message calls it.
        content_bytes: what will be written there, without logs and reports.
    """
    parent = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=parent, prefix=".evomerge-"):
            pass
    except OSError as error:
        raise UserError(
            f"{option}={path}: {parent} cannot be written ({error.strerror}): "
            "name a directory that you may write"
        ) from None
    needed_bytes = 1.1 * content_bytes + _LOGS_BYTES
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise UserError(
            f"{option}={path}: {free / 1e9:.2f} GB free on its disk, {needed_bytes / 1e9:.2f} GB "
            "are needed: free some space or name a directory elsewhere (what has begun: move it "
            "there first)"
        )


def make_run(path: Path, config: DictConfig) -> None:
    """Makes the run's directory with what identifies it, unless an earlier start has."""
    path.mkdir(parents=True, exist_ok=True)
    if not (path / "config.yaml").exists():
        write_text(path / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    if not (path / "environment.json").exists():
        write_text(path / "environment.json", json.dumps(environment(), indent=2) + "\n")


def check_ingredients(path: Path, ingredients: Mapping[str, Any]) -> None:
    """Compares what a run is made of with what its first start was made of, and writes it down.

    A configuration names files; this tells whether they still hold the same.

    Args:
        ingredients: kind (what another call may add) to JSON values that tell one content from
            another.

    Raises:
        UserError: something else lies there now; names it.
    """
    file = path / "ingredients.json"
    before = read_json(file) if file.exists() else {}
    now = json.loads(json.dumps(ingredients))
    known = flatten({kind: before[kind] for kind in now if kind in before})
    again = flatten({kind: now[kind] for kind in now if kind in before})
    changed = [key for key, value in again.items() if known.get(key) != value]
    if changed:
        raise UserError(
            f"{path} was begun with another {_in_words(changed[0])}: what lies there now has "
            "other content; put the old content back, or choose another out="
        )
    if now.keys() - before.keys():
        write_text(file, json.dumps(before | now, indent=2) + "\n")


def _in_words(ingredient: str) -> str:
    kind, _, rest = ingredient.partition(".")
    split, _, task = rest.partition(".")
    if kind.split()[0] != "items":  # of one model among several: "items of NAME"
        return ingredient
    return f"set of {split} items" + (f" for task {task!r}" if task else "")


def _refuse_other(path: Path, saved: Any, config: DictConfig) -> None:
    before, now = flatten(identity_config(saved)), flatten(identity_config(config))
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        raise UserError(
            f"{path} belongs to another configuration: {len(changed)} option(s) differ, first "
            f"{key}: {before.get(key)!r} there, {now.get(key)!r} now; choose another out="
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns dotted key to leaf value."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves.update(flatten(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def finished_run(folder: Path) -> Path | None:
    """Returns the run that a folder is, or whose model it is; None: it belongs to none.

    Raises:
        UserError: the run is not finished.
    """
    above = [folder.resolve().parent] if folder.resolve().name == "model" else []
    marks = ("config.yaml", "environment.json")
    runs = [each for each in (folder, *above) if all((each / m).is_file() for m in marks)]
    if runs and not (runs[0] / "report.html").is_file():
        raise UserError(f"{runs[0]} is not finished: the command that began it goes on with it")
    return runs[0] if runs else None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the run's lock; the system frees it when the process dies, however it dies.

    The directory is made where it is missing, so that a second start is refused before anything
    else is done; if nothing was added to it in the end, it is gone again.

    Raises:
        RunLocked: another process is at work in the directory.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    with _held(path / "run.lock"):
        try:
            yield
        finally:
            left = list(path.iterdir())
            if missing and all(_is_ours(entry.name) for entry in left):
                for entry in left:
                    entry.unlink(missing_ok=True)
                with suppress(OSError):  # another run may have come into a folder above
                    for folder in missing:
                        folder.rmdir()


@contextmanager
def _held(file: Path) -> Iterator[None]:
    with file.open("a") as lock:
        if not _has_flock(lock):
            with _owned(file.with_name(_OWNER)):
                yield
        elif file.exists() and os.path.samestat(os.fstat(lock.fileno()), file.stat()):
            yield
        else:  # a start that was refused took the file away before it was locked here
            raise _locked(file)


def _has_flock(lock: TextIO) -> bool:
    """Locks a file; returns False where its file system cannot, raises RunLocked if it is."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise _locked(Path(lock.name)) from None
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return False
    return True


def _locked(file: Path, who: str = "another process", more: str = "") -> RunLocked:
    return RunLocked(f"{file.parent}: {who} is at work on this run: wait for it or stop it{more}")


@contextmanager
def _owned(file: Path) -> Iterator[None]:
    """Holds a file that names this process, for file systems without locks.

    One that is left of a process of this machine that is gone is taken over.
    """
    mine = f"process {os.getpid()} on {platform.node()}"
    if _is_gone(_read_owner(file)):
        with _owned(file.with_name(f"{file.name}~")):  # who holds this one alone removes markers
            if _is_gone(_read_owner(file)):
                file.unlink(missing_ok=True)
    try:
        with file.open("x", encoding="utf-8") as marker:
            marker.write(mine)
    except FileExistsError:
        owner = _read_owner(file) or "another process"
        raise _locked(file, owner, f"; if it is gone, remove {file}") from None
    try:
        yield
    finally:
        if _read_owner(file) == mine:  # it went with the folder, where nothing was added
            file.unlink(missing_ok=True)


def _read_owner(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _is_gone(owner: str) -> bool:
    match = re.fullmatch(r"process (\d+) on (.*)", owner)
    if match is None or match[2] != platform.node():
        return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's
    return False


def clear_drafts(path: Path) -> None:
    """Removes what a killed start was writing under a temporary name."""
    for draft in [*path.glob(".*.tmp"), *path.glob(".*.part")]:
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink()


def environment() -> dict[str, Any]:
    """Returns what the numbers of a run may depend on: versions, machine, threads."""
    import torch

    wanted = ("torch", "transformers", "nevergrad", "cma", "numpy", "lm-eval", "peft", "evomerge")
    versions = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    lower = {name.lower().replace("_", "-"): version for name, version in versions.items()}
    return {
        "command": sys.argv,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: lower.get(name) for name in wanted},
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
