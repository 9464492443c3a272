"""What a model remembers of its training data: exposure, canary AUC, extraction, membership."""
