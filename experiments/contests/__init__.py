"""Many searches on equal terms, from one experiment file."""
