"""Where experts come from; with `gathering/fisher.py` the project's only gradients."""
