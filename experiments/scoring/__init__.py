"""How a generation's genomes become scores.

One by one, in batches that share their passes, in races, or by Ray's workers. What a genome gives
never depends on where a search was stopped or who scored it: batches have fixed borders, and a
batch goes to one worker.
"""
