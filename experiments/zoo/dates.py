"""Dates of a zoo's files, which private work must not leave."""

from merging.files import date_alike
from merging.zoo.packs import FOLDER
from merging.zoo.store import Zoo


def hide_dates(zoo: Zoo) -> None:
    """Dates index and packs alike: when private work ended tells of its items."""
    packs = zoo.directory / FOLDER
    date_alike([*packs.iterdir(), *zoo.directory.iterdir(), zoo.directory])
