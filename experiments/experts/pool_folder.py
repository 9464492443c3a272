"""Where the parts of a prepared pool of experts lie."""

from dataclasses import dataclass
from pathlib import Path

from experiments.runs.sources import Sources


@dataclass(frozen=True)
class PoolFolder:
    """A base, experts of these names and the items that they are asked, below one folder.

    Args:
        texts: another folder for the items; None: the same.
    """

    folder: Path
    names: tuple[str, ...]
    texts: Path | None = None

    @property
    def base(self) -> Path:
        """Model folder of the base."""
        return self.folder / "base"

    @property
    def experts(self) -> dict[str, Path]:
        """Name to model folder."""
        return {name: self.folder / "experts" / name for name in self.names}

    @property
    def data(self) -> Path:
        """Folder of held-out items, see `held_out`."""
        return (self.texts or self.folder) / "data"

    @property
    def tasks(self) -> Path:
        """Folder of the quickstart's lm-eval task files ``quickstart_choice_<split>.yaml``."""
        return (self.texts or self.folder) / "tasks"

    @property
    def sources(self) -> Sources:
        """Base and experts as entries of the configuration."""
        return Sources(str(self.base), {name: str(path) for name, path in self.experts.items()})

    def held_out(self, task: str, split: str) -> Path:
        """Returns the file of a task's items of one split."""
        return self.data / f"{task}.{split}.jsonl"
