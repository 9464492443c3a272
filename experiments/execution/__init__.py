"""Where the candidates of a search are scored: in this process, or by workers elsewhere."""
