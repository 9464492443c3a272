"""Weights in, weights out: experts, merge methods, plans, spaces, recipes.

`method.py` is the interface of a merge method, `plan.py` a method with its coefficients over a
pool, `plans.py` reads every kind of plan back, `recipe.py` names ingredients by hash and rebuilds.
Nothing here knows of a search or a task.
"""
