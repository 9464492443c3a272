"""Trees of crossovers and mutations of task vectors."""
