"""Merge methods, one file each; a method sees one tensor of every expert at a time."""
