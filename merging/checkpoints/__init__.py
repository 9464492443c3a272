"""Models, adapters and their records on disk.

transformers 5 renames parameters between file and module for several architectures, so that a
checkpoint is always presented under the names of its module's `state_dict`; files are read lazily
wherever that mapping is one to one. An expert's identity is the SHA-256 of its weight files:
random methods seed its noise by it, so that the order of a list of experts changes nothing. Of
classifiers the encoder is merged, each expert's head stays with its task.
"""
