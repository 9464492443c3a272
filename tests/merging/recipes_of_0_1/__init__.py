"""Recipes as they were written before merging had folders."""
