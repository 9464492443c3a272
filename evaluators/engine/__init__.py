"""One resident model, written in place, answers all requests.

Batches are planned once; one job per kind of request. Candidates near one centre share passes:
the plain model is a population of one without differences, so that there is one engine. Beginnings
that rows share are computed once. `served.py` stands in where another program holds the base.
"""
