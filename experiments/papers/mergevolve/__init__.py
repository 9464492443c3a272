"""MERGEvolve (arXiv 2606.28373): all of it is `conf/experiment/mergevolve.yaml`, with its page."""
