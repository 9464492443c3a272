"""A zoo in use: adding, listing and opening its models, what a search keeps in it, its plots."""
