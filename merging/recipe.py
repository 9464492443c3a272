"""Recipes: a merged model in a few kilobytes, beside experts that everyone has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from merging.files import write_text
from merging.plan import Plan
from merging.plans import plan_from_description

FORMAT = 1


class RecipeError(ValueError):
    """A recipe that cannot be read or rebuilt; names the file, key or expert and the remedy."""


@dataclass(frozen=True)
class Ingredient:
    """A checkpoint by name and content.

    Args:
        source: Hugging Face id or directory, as the user named it.
    """

    source: str
    sha256: str

    def __post_init__(self) -> None:
        if not (isinstance(self.source, str) and isinstance(self.sha256, str)):
            raise ValueError(
                f"recipe: source {self.source!r} and sha256 {self.sha256!r} must be text: "
                "use the recipe.json that the run wrote"
            )


@dataclass(frozen=True)
class Recipe:
    """All that rebuilds a merged model bit for bit.

    Args:
        experts: expert name to ingredient, in the order of the pool.
        dtype: of the saved parameters, for example ``bfloat16``; None: each one's in the base.
        privacy: what `merging.privacy.ledger.Ledger` describes; None: nothing is known of it.
        vocabulary: the rule by which tokens were brought together, and the hash of all files that
            it follows from; None: they are the base's.
    """

    base: Ingredient
    experts: Mapping[str, Ingredient]
    plan: Plan
    dtype: str | None = None
    privacy: Mapping[str, Any] | None = None
    vocabulary: tuple[str, str] | None = None

    @classmethod
    def of(
        cls,
        pool: ExpertPool,
        plan: Plan,
        *,
        dtype: str | None = None,
        privacy: Mapping[str, Any] | None = None,
    ) -> Recipe:
        """Returns the recipe of `plan` over `pool`."""
        experts = {
            name: Ingredient(pool.sources[name], sha256)
            for name, sha256 in zip(pool.expert_names, pool.identities, strict=True)
        }
        base = Ingredient(pool.base.source, pool.base.sha256)
        return cls(base, experts, plan, dtype, privacy, pool.vocabulary)

    @property
    def ingredients(self) -> dict[str, Ingredient]:
        """Returns the base, as ``base``, and the experts by name."""
        return {"base": self.base, **self.experts}

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as JSON."""
        tokens = {} if self.vocabulary is None else {"vocabulary": list(self.vocabulary)}
        return {
            "format": FORMAT,
            "base": vars(self.base),
            "experts": {name: vars(expert) for name, expert in self.experts.items()},
            **tokens,
            **self.plan.describe(),
            "dtype": self.dtype,
            "privacy": self.privacy,
            "created_by": f"evomerge {_version()}",
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Recipe:
        """Returns the recipe that `to_json` wrote.

        Raises:
            RecipeError: another format, or a missing or senseless key.
        """
        if not isinstance(content, Mapping):
            raise RecipeError("recipe: expected a JSON object: this is no recipe of evomerge")
        if content.get("format") != FORMAT:
            raise RecipeError(
                f"recipe: format {content.get('format')!r} is not {FORMAT}: "
                "rebuild it with the version of evomerge that wrote it"
            )
        try:
            dtype = content.get("dtype")
            if dtype is not None:
                parse_dtype(dtype)
            return cls(
                base=Ingredient(**content["base"]),
                experts={k: Ingredient(**v) for k, v in content["experts"].items()},
                plan=plan_from_description(content),
                dtype=dtype,
                privacy=content.get("privacy"),
                vocabulary=_rule_and_hash(content.get("vocabulary")),
            )
        except KeyError as error:
            raise RecipeError(f"recipe: {error.args[0]!r} is missing") from None
        except (TypeError, AttributeError) as error:
            raise RecipeError(f"recipe: malformed: {error}") from None
        except ValueError as error:
            raise RecipeError(str(error)) from None

    def save(self, path: Path) -> None:
        """Writes the recipe as JSON, the coefficients of a group on one line."""
        write_text(path, _laid_out(self.to_json()) + "\n")

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Returns the recipe in a file.

        Raises:
            RecipeError: no such file, not JSON, or as in `from_json`; names the file.
        """
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise RecipeError(
                f"{path}: cannot be read ({error.strerror}): name a run's recipe.json"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: not JSON ({error}): name a run's recipe.json") from None
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None

    def open_pool(
        self, *, replaced: Mapping[str, str] | None = None, trust_remote_code: bool = False
    ) -> ExpertPool:
        """Opens base and experts and checks that their content is what the recipe names.

        Args:
            replaced: expert name (or ``base``) to where it lies now, if it moved.

        Raises:
            RecipeError: a checkpoint's content differs, or `replaced` names no ingredient.
            CheckpointError: a checkpoint cannot be opened.
        """
        moved = dict(replaced or {})
        if unknown := sorted(set(moved) - {"base", *self.experts}):
            raise RecipeError(
                f"source {unknown[0]!r} is no ingredient: expected base, {', '.join(self.experts)}"
            )
        source = moved.get("base", self.base.source)
        base = Checkpoint.open(source, trust_remote_code=trust_remote_code)
        _compare("base", base.source, base.sha256, self.base)
        places = {name: moved.get(name, expert.source) for name, expert in self.experts.items()}
        rule = "refuse" if self.vocabulary is None else self.vocabulary[0]
        pool = ExpertPool.open(
            base.source, places, trust_remote_code=trust_remote_code, vocabulary=rule
        )
        for name, sha256 in zip(pool.expert_names, pool.identities, strict=True):
            _compare(name, pool.sources[name], sha256, self.experts[name])
        if pool.vocabulary != self.vocabulary:
            raise RecipeError(
                "the tokenizers of base and experts are not those that the recipe was made with, "
                "from which the rows of their embeddings follow: put those files back"
            )
        return pool

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype of the saved parameters; None: each one's in the base."""
        return None if self.dtype is None else parse_dtype(self.dtype)


def parse_dtype(name: str) -> torch.dtype:
    """Returns the floating-point dtype that torch calls `name`; raises ValueError for others."""
    known = {"float64", "float32", "bfloat16", "float16"}
    if name not in known:
        raise ValueError(f"dtype {name!r} is unknown: expected one of {', '.join(sorted(known))}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def dtype_name(dtype: torch.dtype | None) -> str | None:
    """Returns torch's name of a dtype without the module, for example ``bfloat16``."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _laid_out(value: Any, depth: int = 0) -> str:
    """Returns JSON with one line per entry down to the second level, compact below."""
    if not isinstance(value, Mapping) or not value or depth == 2:
        return json.dumps(value)
    indent = "  " * (depth + 1)
    lines = (f"{indent}{json.dumps(k)}: {_laid_out(v, depth + 1)}" for k, v in value.items())
    return "{\n" + ",\n".join(lines) + "\n" + indent[2:] + "}"


def _compare(name: str, source: str, sha256: str, wanted: Ingredient) -> None:
    if sha256 != wanted.sha256:
        raise RecipeError(
            f"{name}: {source} has content {sha256[:12]}, the recipe was made with "
            f"{wanted.sha256[:12]}: name the right checkpoint of {name!r} to open_pool"
        )


def _rule_and_hash(content: Any) -> tuple[str, str] | None:
    if content is None:
        return None
    rule, sha256 = content
    return str(rule), str(sha256)


def _version() -> str:
    try:
        return version("evomerge")
    except PackageNotFoundError:
        return "unknown"
