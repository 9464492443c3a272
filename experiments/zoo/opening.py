"""Models of a zoo where they are to be read: plain files, and views of recipes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.runs.directory import check_writable
from experiments.runs.errors import UserError
from experiments.runs.progress import ProgressBar
from experiments.runs.shown import shown
from experiments.zoo.names import check_known
from experiments.zoo.needs import made_from, plain_sizes
from merging.weight_names import find_weights
from merging.weights import Weights
from merging.zoo.store import SOURCE, Zoo
from merging.zoo_recipes import Shown, make_views, write_plain


def open_model(directory: Path | None, name: str, out: Path) -> None:
    """Writes a model's plain files into a new directory.

    Raises:
        UserError, CheckpointError, RecipeError: there is no such model, or `out` cannot be filled.
    """
    zoo = Zoo.open(directory)
    check_known(zoo, [name])
    if out.exists():
        raise UserError(f"--out {out} exists already: name a new directory")
    check_writable(out, "--out", _bytes(zoo, name))
    with _progress() as show:
        write_plain(zoo, name, out, show)


def _bytes(zoo: Zoo, name: str) -> int:
    """Returns the size of a model's plain files; 0 where nothing is known of it."""
    models = zoo.models()
    size = plain_sizes(models, made_from(zoo, models))[name]
    if size is not None:
        return size
    base = Path(zoo.recipe(name)["base"]["source"]).expanduser()
    files, _ = find_weights(base, adapter=False) if base.is_dir() else ((), None)
    return sum(file.stat().st_size for file in files)


def open_sources(sources: Iterable[str]) -> None:
    """Rebuilds, with progress, what of `sources` a zoo keeps as a recipe.

    What reads checkpoints calls it before it opens them.

    Raises:
        UserError: a zoo has no such model; says which was probably meant.
        ZooError, RecipeError, CheckpointError: as `make_views`.
    """
    named = [source for source in dict.fromkeys(sources) if source.startswith(SOURCE)]
    for source in named:
        zoo, name = Zoo.of(source)
        check_known(zoo, [name])
    with _progress() as show:
        make_views(named, show)


@contextmanager
def _progress() -> Iterator[Shown]:
    """Yields what shows how far the rebuilding of a model is."""
    bars: list[ProgressBar] = []

    def show(name: str, weights: Weights) -> Weights:
        for bar in bars:
            bar.__exit__(None, None, None)
        bars[:] = [bar := ProgressBar(len(weights), f"rebuilding {name}", "tensor")]
        return shown(weights, lambda _: bar.update())

    try:
        yield show
    finally:
        for bar in bars:
            bar.__exit__(None, None, None)
