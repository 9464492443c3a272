"""Who of the best candidates wins, and how sure that is."""
