"""What a person reads of a run: page, charts, tables, model card; from its files alone.

`report.py` puts the page together from the sections; the heat map of the winner's coefficients is
drawn by `heat_map.py`, the way out of the hull by `hull_plot.py`, all other charts by `charts.py`
and `front_plot.py`.
"""
