"""mergekit's YAML, read and written: a file of that tool runs here as it is."""
