"""What fine-tuned models remember of vulnerability scans: the experiment csirt_memorization."""
