"""A packaged language model, and LoRA experts of it for tasks that lm-eval runs."""
