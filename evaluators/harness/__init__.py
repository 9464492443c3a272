"""Tasks of lm-eval, asked through this engine."""
