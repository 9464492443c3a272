"""Search spaces: how a genome becomes the weights of a model."""
