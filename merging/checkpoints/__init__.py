"""Checkpoints and adapters on disk: tensors, names, architectures, hashes, records."""
