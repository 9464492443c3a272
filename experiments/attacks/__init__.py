"""Attackers that are trained or that descend gradients, on what a customer of a split model sends.

They know the frozen bottom, public texts and how noise is drawn, not which noise was drawn.
"""
