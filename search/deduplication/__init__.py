"""Which blocks of a model to give up for others': the order of questions, and who serves whom."""
