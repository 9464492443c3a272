"""The paper's numbers (arXiv 2606.28479), from the authors' public repository."""

from collections.abc import Mapping

# model -> regime -> mean exposure in bits
EXPOSURE: Mapping[str, Mapping[str, float]] = {
    "gemma-3-1b": {"V0": 3.49, "V0fs": 1.61, "V1": 1.38, "V2": 1.54, "V3": 1.50},
    "qwen3-1.7b": {"V0": 4.48, "V0fs": 2.59, "V1": 2.83, "V2": 2.60, "V3": 2.51},
    "llama-3.2-3b": {"V0": 4.98, "V0fs": 2.61, "V1": 3.20, "V2": 2.68, "V3": 2.92},
    "vaultgemma-1b": {"V0": 3.60, "V0fs": 2.05, "V1": 1.24, "V2": 1.26, "V3": 1.45},
}
RECOVERED_V1 = (0.66, 1.32)
"""Least and largest of the four models against the large batch; their mean is 1.00."""

STACK: Mapping[str, Mapping[str, float]] = {
    "gemma-3-1b": {"VA": -2.00, "VB": -0.67, "V1": -2.10},
    "qwen3-1.7b": {"VA": -1.53, "VB": -0.63, "V1": -1.65},
    "llama-3.2-3b": {"VA": -1.79, "VB": -0.19, "V1": -1.78},
    "vaultgemma-1b": {"VA": -0.96, "VB": -1.41, "V1": -2.37},
}
"""Model to difference from V0 in bits: large lots alone, NF4 alone, both."""

HMAC_REDUCTION = (0.40, 0.61)
FIRST_ATTACK = (1.3, 2.6)
"""Exposure of original values on pseudonymised models, in bits."""

SECOND_ATTACK = (0.88, 1.63)
"""Exposure of slugs, in bits; the published code attacked the ten class A canaries alone."""

MACRO_F1 = (0.19, 0.28)
AUC_RAW = (0.59, 0.85)
AUC_OTHERS = (0.49, 0.59)
"""AUC of the canaries' tokens, of V0 and of the regimes after it."""

# what a row of exposures means; rows that the paper does not have stand for themselves
REGIMES: Mapping[str, str] = {
    "base": "the base, not fine-tuned",
    "V0": "raw: small lot",
    "V0fs": "control: small lot, the updates of V1",
    "V1": "large lot and NF4, the presentations of V0",
    "VA": "large lot alone",
    "VB": "NF4 alone",
    "VC": "Poisson sampling, small lot",
    "VD": "NF4, DP path without noise",
    "V2": "NF4, DP-SGD, epsilon 8",
    "V3": "NF4, DP-SGD, epsilon 2",
    "V2-as-released": "NF4, epsilon 8, clipping as released",
    "V3-as-released": "NF4, epsilon 2, clipping as released",
}


def paper_row(regime: str) -> list[str]:
    """Returns the four models' exposures of a regime; the paper's DP has the clipping fault."""
    paper = regime.removesuffix("-as-released")
    if paper in ("V2", "V3") and paper == regime:
        return [""] * len(EXPOSURE)
    if paper in ("VA", "VB"):
        return [f"{row['V0'] + STACK[model][paper]:.2f}" for model, row in EXPOSURE.items()]
    return [f"{row[paper]:.2f}" if paper in row else "" for row in EXPOSURE.values()]


def recovered(model: str, regime: str) -> float | None:
    """Returns a model's published recovered fraction against a regime; None: it has none."""
    row, paper = EXPOSURE[model], regime.removesuffix("-as-released")
    if regime == "VA":  # from the stack ablation
        return (row["V0"] - row["V0fs"]) / -STACK[model]["VA"]
    if paper not in row or paper == regime != "V1":
        return None
    return (row["V0"] - row["V0fs"]) / (row["V0"] - row[paper])
