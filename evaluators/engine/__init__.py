"""One resident model, written in place, answers all requests.

Batches are planned once; one job per kind of request. Candidates near one centre share passes:
the plain model is a population of one without differences, so that there is one engine. Beginnings
that rows share are computed once. What a model can do with several rows is measured, not told by
its kind; what batches cannot do, transformers' generate does one prompt at a time. `served.py`
stands in where another program holds the base, `served_set.py` where models of a zoo take turns.
"""

from evaluators.engine.engine import Engine as Engine
