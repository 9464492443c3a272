"""LoRA: factors A and B apart, and low-rank differences to one centre."""
