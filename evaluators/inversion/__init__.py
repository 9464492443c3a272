"""What is read out of sent states: tokens, attributes; beside attackers that never see the states.

Nothing here is trained.
"""
