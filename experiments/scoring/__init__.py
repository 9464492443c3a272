"""How a generation's genomes become scores: one by one, together, in races, on servers."""
