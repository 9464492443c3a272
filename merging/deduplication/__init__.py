"""Models whose blocks stand for those of others; blocks are rows of equally many numbers."""
