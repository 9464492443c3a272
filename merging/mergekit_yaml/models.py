"""Which models a mergekit file names, and which of them are merged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merging.mergekit_yaml.parameters import Settings
from merging.mergekit_yaml.spelling import MergekitError, Spelling


@dataclass(frozen=True)
class ModelReference:
    """A model as mergekit writes it: ``ID``, a directory, or ``BASE+ADAPTER``."""

    text: str

    def __post_init__(self) -> None:
        if self.text.count("+") > 1 and not self._is_directory:
            raise MergekitError(f"model {self.text}: expected one adapter behind the +")
        if "@" in self.text and not self._is_directory:
            raise MergekitError(
                f"model {self.text}: a revision behind @ is not supported: "
                "download it and name its directory"
            )

    @property
    def source(self) -> str:
        """What is opened as an expert: the adapter, or the whole model."""
        return self.text.split("+")[-1] if self.is_adapter else self.text

    @property
    def origin(self) -> str:
        """What the expert differs from if it is merged without a base_model."""
        return self.text.split("+")[0] if self.is_adapter else self.text

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is named beside its base."""
        return "+" in self.text and not self._is_directory

    @property
    def _is_directory(self) -> bool:
        return Path(self.text).expanduser().is_dir()


@dataclass(frozen=True)
class MergekitInput:
    """One merged model: a name for the recipe, and the file's parameters for it."""

    name: str
    model: ModelReference
    settings: Settings


@dataclass(frozen=True)
class MergekitSources:
    """What a file lists under ``models``, or under its one slice.

    Args:
        entries: models with their own parameters, in order.
        shared: parameters of all models, those of the slice before those of the file.
    """

    entries: Sequence[tuple[ModelReference, Settings]]
    shared: Sequence[Settings]
    layer_ranges: Sequence[list[int]] = field(default_factory=tuple)


def listed(content: Mapping[str, Any]) -> MergekitSources:
    """Returns the models of a file, from ``models`` or from one slice with all layers.

    Raises MergekitError for both or none, several slices, or an entry of another form.
    """
    models, slices = content.get("models"), content.get("slices")
    shared = settings_of(content, "parameters")
    if (models is None) == (slices is None):
        raise MergekitError("expected one of models and slices, got both or none")
    if models is not None:
        return MergekitSources(_entries(models, "models", {"model", "parameters"}), (shared,))
    if not isinstance(slices, list) or len(slices) != 1 or not isinstance(slices[0], dict):
        raise MergekitError(
            "slices: layers are not re-ordered here: give models, or one slice of all layers"
        )
    refuse_keys(slices[0], {"sources", "parameters"}, "slices")
    sources = slices[0].get("sources")
    return MergekitSources(
        _entries(sources, "sources", {"model", "layer_range", "parameters"}),
        (settings_of(slices[0], "parameters of the slice"), shared),
        [entry["layer_range"] for entry in sources or () if "layer_range" in entry],
    )


def merged_models(
    entries: Sequence[tuple[ModelReference, Settings]], base: Any, spelling: Spelling, name: str
) -> tuple[list[MergekitInput], str]:
    """Returns the models that are merged, and the one that their deltas start from.

    Raises MergekitError without a needed base_model, or for too few or too many models.
    """
    if base is None and spelling.base in ("origin", "first"):
        raise MergekitError(f"merge_method {name} needs a base_model")
    if base is not None and not isinstance(base, str):
        raise MergekitError(f"base_model: {base} is no model: name an id or a directory")
    root = None if base is None else ModelReference(base)
    merged = list(entries)
    if root is not None and spelling.base in ("origin", "optional"):
        merged = [(model, settings) for model, settings in entries if model != root]
    elif root is not None and spelling.base == "first":
        merged = [(root, {}), *((model, own) for model, own in entries if model != root)]
    elif root is not None and root not in [model for model, _ in entries]:
        merged = [*entries, (root, {})]  # mergekit counts it as one more model
    least, most = spelling.count
    if len(merged) < least or (most is not None and len(merged) > most):
        wanted = f"exactly {least}" if least == most else f"at least {least}"
        beside = " beside the base_model" if spelling.base in ("origin", "optional") else ""
        raise MergekitError(
            f"merge_method {name} merges {wanted} model{'s' if least > 1 else ''}{beside}, "
            f"{len(merged)} given"
        )
    models = [model for model, _ in merged]
    inputs = zip(names_of(models), merged, strict=True)
    return [MergekitInput(name, *entry) for name, entry in inputs], origin_of(root, models)


def origin_of(root: ModelReference | None, merged: Sequence[ModelReference]) -> str:
    """Returns the base; adapters must belong to it."""
    bases = list(dict.fromkeys(model.origin for model in merged if model.is_adapter))
    if root is not None and not root.is_adapter:
        bases = list(dict.fromkeys([root.text, *bases]))
    if len(bases) > 1:
        raise MergekitError(
            f"models: adapters of {bases[0]} and of {bases[1]} cannot be merged: use one base"
        )
    return bases[0] if bases else merged[0].text


def _entries(
    listing: Any, where: str, known: set[str]
) -> tuple[tuple[ModelReference, Settings], ...]:
    """Returns model and own parameters of every entry of a list."""
    if not isinstance(listing, list) or not listing:
        raise MergekitError(f"{where}: expected a list of {{model: ID or directory, ...}}")
    entries: dict[ModelReference, Settings] = {}
    for entry in listing:
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            raise MergekitError(f"{where}: {entry} is no {{model: ID or directory, ...}}")
        refuse_keys(entry, known, where)
        model = ModelReference(entry["model"])
        if model in entries:
            raise MergekitError(f"{where}: {model.text} is listed twice: list it once")
        entries[model] = settings_of(entry, f"parameters of {model.text}")
    return tuple(entries.items())


def settings_of(owner: Mapping[str, Any], where: str) -> Settings:
    """Returns the ``parameters`` of a file, slice or model; raises MergekitError: no table."""
    settings = owner.get("parameters") or {}
    if not isinstance(settings, dict):
        raise MergekitError(f"{where}: expected parameter: value, got {settings!r}")
    return settings


def refuse_keys(entry: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raises MergekitError, naming `where`, for a key that is not `known`."""
    if unknown := sorted(set(entry) - known):
        raise MergekitError(f"{where}: {unknown[0]}: is not supported: remove the key")


def names_of(models: Sequence[ModelReference], reserved: Sequence[str] = ()) -> list[str]:
    """Returns a short name for every model: the last part of its path, numbered if needed."""
    names = list(reserved)
    for model in models:
        stem = model.source.rstrip("/").rsplit("/", 1)[-1]
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names[len(reserved) :]
