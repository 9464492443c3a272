"""Who lives on and who mates: survival and archives of genetic algorithms."""
