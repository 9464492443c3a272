"""What a merge states about privacy.

A merge is post-processing of its experts: per data set the sum, or the tighter composition, of
what they spent. Every expert that a search read counts, and one without a record makes the merge
"not private", in words. A search from a recipe inherits its ledger. `dial.py` chooses merges by
what they will cost. `accounting.py` is the one file that imports dp-accounting.
"""
