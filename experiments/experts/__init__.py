"""Where experts come from; with `gathering/` and `attacks/` the project's only gradients."""
