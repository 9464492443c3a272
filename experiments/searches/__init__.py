"""One search from its start to its report: steps, references, certificate, trackers."""
