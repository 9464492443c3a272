"""Where experts come from; the project's only gradients."""
