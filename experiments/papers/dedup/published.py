"""The figures that the plot scripts published with arXiv 2503.02862 hold, for comparison."""

from collections.abc import Mapping

RATIOS: Mapping[str, tuple[str, ...]] = {
    "RoBERTa QNLI, 1 -> 2, 4, 6, 7": (
        "5.4 15.2 5.4 22.4",
        "2.9 17.7 15.2 22.4",
        "18.4 100 100 100",
        "18.4 18.4 18.4 100",
    ),
    "RoBERTa MNLI, 0.2 -> 0.4, 0.8, 1.6, 2.0": (
        "5.4 5.4 5.4 2.9",
        "5.4 5.4 5.4 5.4",
        "42.6 42.6 100 100",
        "18.4 18.4 52.0 100",
    ),
    "MNLI 0.2 -> SST-2 0.3, 0.4, 0.6, 0.8, 1.0": (
        "10.1 15.2 34.3 15.2 24.9",
        "26.0 13.4 34.3 13.4 26.0",
        "100 100 100 100 100",
        "86 100 93 100 100",
    ),
    "ViT-L CIFAR100, 0.5 -> 0.6, 0.75, 1, 2": (
        "6.7 22.2 19.1 22.2",
        "3.6 22.2 19.1 22.2",
        "8.8 8.8 100 100",
        "8.8 8.8 21.6 21.6",
    ),
    "ResNet152 CelebA, 0.4 -> 0.6, 0.8, 1, 2": (
        "11.8 11.8 18.5 35.6",
        "8.6 8.6 13.1 40.6",
        "84.2 100 100 100",
        "84.2 84.2 84.2 84.2",
    ),
}
"""Base and targets by epsilon -> compression ratio in % of each target, base excluded, by DRD,
DRED, Mistique-20 and Dedup-20 (greedy-N)."""

SELECTION: Mapping[str, tuple[str, ...]] = {
    "RoBERTa MNLI (5)": ("24.4 / 0.8", "41.8 / 1.2", "41.8 / 1.4"),
    "RoBERTa QNLI (10)": ("34.6 / 9", "35.5 / 29", "45.7 / 35"),
    "ViT-L CIFAR100 (10)": ("26.1 / 4.5", "32.4 / 4.6", "45.7 / 5.3"),
    "ResNet152 CelebA (20)": ("37.6 / 3.8", "38.2 / 13.4", "39.4 / 16.4"),
}
"""Cluster -> overall compression ratio in % and sum of epsilon increases: ours, multi, cross."""
