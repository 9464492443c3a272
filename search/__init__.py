"""Numbers and genomes: `strategy.py` is ask/tell, `objective.py` makes fitness of scores."""
