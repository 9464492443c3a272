"""Fine-tuning of experts by gradient: plain, in large lots, and under differential privacy."""
