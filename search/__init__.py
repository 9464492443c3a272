"""Numbers and genomes: strategies, objective, history and the search loop."""
