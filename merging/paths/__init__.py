"""A start and seeded noise, step by step: what evolution strategies in all parameters walk."""
