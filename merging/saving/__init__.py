"""Models and adapters, written under a temporary name and renamed.

The winner's weights are computed on the CPU from the files, by the same code as `rebuild`, so that
a run on a GPU and a rebuild elsewhere agree bit for bit.
"""
