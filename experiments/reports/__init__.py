"""What a person reads of a run: page, charts, tables, model card; from its files alone."""
