"""What of the paper reproduces: sentences that follow from the numbers by fixed rules."""

import numpy as np

from experiments.papers.csirt import published
from experiments.papers.csirt.cells import BASE
from experiments.papers.csirt.scores import EXPOSURE, F1, CellScores

_SIGNIFICANT = 0.05
_NEAR = 0.2  # how far outside the paper's range still counts as near it
_BITS = 0.5  # a smaller difference of exposures is called none


def verdicts(scores: CellScores) -> str:
    """Returns one line for each claim: the word first, then the numbers.

    Where V0 remembers (nearly) nothing there is no drop to explain, and none is claimed.
    """
    learnt = scores.beyond_base("raw", "V0", EXPOSURE)
    if learnt < _BITS:
        return (
            f"- **Undecided**, all of it: V0 lies {learnt:+.2f} bits from a base that never saw "
            "the canaries; there is no drop to explain. More records or updates are needed."
        )
    lines = [_updates(scores), _correct_dp(scores)]
    if scores.has("raw", "VA") and scores.has("raw", "VB"):
        lines.insert(1, _stack(scores))
    if scores.has("raw", "V2-as-released"):
        lines.append(_as_released(scores))
    if scores.has("pseudonymised", "V0"):
        lines += [_reduction(scores), _slugs(scores)]
    lines += [_floor(scores), _utility(scores)]
    return "\n".join(f"- {line}" for line in lines)


def _updates(scores: CellScores) -> str:
    """Fewer updates explain the drop, if the recovered fraction is like that of the paper."""
    low, high = published.RECOVERED_V1
    value = float(np.mean([scores.recovered(base, "V1")[0] for base in scores.bases]))
    correct = float(np.mean([scores.recovered(base, "V2")[0] for base in scores.bases]))
    return (
        f"{_word(value, low, high)}: fewer updates alone explain the drop from V0 to V1. "
        f"Recovered fraction {value:.2f} (mean over bases; the paper {low} to {high}, mean 1.00); "
        f"against correct DP-SGD {correct:.2f}: {_share(correct)}."
    )


def _stack(scores: CellScores) -> str:
    """The paper: on three models of four it is the lots, not NF4."""
    lots, rounding = (
        [scores.difference(base, regime, "V0") for base in scores.bases] for regime in ("VA", "VB")
    )
    bits = f"large lots alone {np.mean(lots):+.2f} bits, NF4 alone {np.mean(rounding):+.2f}"
    if all(a < b for a, b in zip(lots, rounding, strict=True)):
        return (
            f"**Reproduces**: of V1's two changes the large lot lowers exposure more: {bits} "
            "(so on three of the paper's four models)."
        )
    return (
        f"**Does not reproduce**: that of V1's two changes the large lot lowers exposure more, as "
        f"on three of the paper's four models: {bits}."
    )


def _share(correct: float) -> str:
    if correct >= 0.95:
        return "the updates explain all of it there, too"
    return f"{100 * (1 - correct):.0f} % of that drop is the noise's and the clipping's own"


def _correct_dp(scores: CellScores) -> str:
    """The paper: DP is no better than large lots. With correct clipping?"""
    bits, share = _below_large_lot(scores, "V2")
    if bits <= -_BITS and share == 1:
        return (
            "**Does not reproduce**: that DP-SGD adds nothing to large lots. With correct "
            f"per-record clipping V2 lies {-bits:.2f} bits below V1, significantly on every base."
        )
    if share == 0 and bits > -_BITS:
        return f"**Reproduces**: correct DP-SGD adds nothing to large lots (V2 - V1 {bits:+.2f})."
    return (
        f"**Undecided**: whether correct DP-SGD adds to large lots: V2 - V1 {bits:+.2f} bits, "
        f"significant on {100 * share:.0f} % of the bases."
    )


def _as_released(scores: CellScores) -> str:
    bits, share = _below_large_lot(scores, "V2-as-released")
    correct, _ = _below_large_lot(scores, "V2")
    if bits > correct / 2 and bits > -_BITS:
        return (
            "**Reproduces**: with the published clipping fault DP-SGD adds (nearly) nothing to "
            f"large lots: V2 as released - V1 {bits:+.2f} bits, correct V2 - V1 {correct:+.2f}. "
            "The published finding is what the fault makes of it."
        )
    return (
        "**Does not reproduce**: the published clipping fault does not take away what DP-SGD "
        f"does: V2 as released - V1 {bits:+.2f} bits, significant on {100 * share:.0f} % of the "
        f"bases, correct V2 - V1 {correct:+.2f}."
    )


def _below_large_lot(scores: CellScores, regime: str) -> tuple[float, float]:
    """Returns the mean difference to V1 in bits, and on which share of bases it is significant."""
    paired = scores.paired([(regime, "V1")], scores.bases).values()
    below = [test.q < _SIGNIFICANT and test.difference < 0 for test in paired]
    return float(np.mean([test.difference for test in paired])), float(np.mean(below))


def _reduction(scores: CellScores) -> str:
    low, high = published.HMAC_REDUCTION
    cuts = [
        1
        - scores.mean(base, "pseudonymised", "V0", EXPOSURE)
        / scores.mean(base, "raw", "V0", EXPOSURE)
        for base in scores.bases
    ]
    value = float(np.mean(cuts))
    left = scores.beyond_base("pseudonymised", "V0", EXPOSURE)
    return (
        f"{_word(value, low, high)}: pseudonyms cut the exposure of original values of V0 by "
        f"{100 * value:.0f} % (the paper {100 * low:.0f} to {100 * high:.0f} %). They lie "
        f"{left:+.2f} bits from the base, which never saw them: what is left is its preference."
    )


def _slugs(scores: CellScores) -> str:
    beyond = scores.beyond_base("pseudonymised", "V0", "slugs/exposure")
    if beyond < _BITS:
        return (
            f"**Reproduces**: slugs are not memorized (V0 {beyond:+.2f} bits from the base), here "
            "with the slugs that were trained on, and all canaries."
        )
    return (
        f"**Does not reproduce**: slugs at the floor. Attacked with the very slugs that were "
        f"trained on, all canaries, V0 remembers them: {beyond:+.2f} bits beyond the base. A slug "
        "is as easily learnt as a value; what protects is that it cannot be turned back."
    )


def _floor(scores: CellScores) -> str:
    chance = scores.chance(EXPOSURE) or float("nan")
    base = scores.over_bases("raw", BASE, EXPOSURE)
    return (
        f"**Corrected**: the floor is {chance:.2f} bits (mean over ranks), not the 1.0 of the "
        f"middle rank; bases that never saw the canaries have {base:.2f}."
    )


def _utility(scores: CellScores) -> str:
    low, high = published.MACRO_F1
    values = {regime: scores.over_bases("raw", regime, F1) for regime in (BASE, "V0", "V1", "V2")}
    shown = ", ".join(f"{regime} {value:.2f}" for regime, value in values.items())
    word = "**Reproduces**" if values["V0"] <= high + 0.05 else "**Differs by design**"
    return (
        f"{word}: macro-F1 {shown} (the paper {low} to {high} throughout, where fine-tuning "
        "taught nothing that the measure sees)."
    )


def _word(value: float, low: float, high: float) -> str:
    if low <= value <= high:
        return "**Reproduces**"
    if low - _NEAR <= value <= high + _NEAR:
        return "**Nearly reproduces**"
    return "**Does not reproduce**"
