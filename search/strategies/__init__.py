"""Ask/tell search strategies, one file each."""
