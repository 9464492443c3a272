"""Files of mergekit-evolve: as options of a search, and what of them has no counterpart here."""
