"""Membership by votes of windows: where in a text is the model surer than its reference?"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from merging.arrays import Vector

_SIZES = np.rint(2 * (40 / 2) ** (np.arange(10) / 9)).astype(int)  # w_k = 2 (40 / 2)^((k-1) / 9)


def window_votes(gains: Vector) -> float:
    """Returns the share of windows that vote for a member, the mean over ten sizes of 2 to 40.

    A window votes for it where the model's losses add up to less than the reference's: by sign,
    so that single tokens with large differences, which any tuning on the same domain gives,
    decide no more than their own windows. A window that is longer than the text is the text.

    Args:
        gains: ``(tokens,)`` loss of the reference less that of the model, at least one.

    Source: WBC: Chen et al. 2026, Window-based membership inference attacks against fine-tuned
        large language models, arXiv 2601.02751, section 4.1 and eq. (12) and (13), as the
        re-implementation in LeakPro quotes them: the paper itself was not at hand, and its
        configuration lists other sizes of 2 to 40 than eq. (12) gives. Shortened windows are its
        code's, as told there; that a tie is no vote follows from ``> 0``.
    """
    votes = [
        (sliding_window_view(gains, size).sum(-1) > 0).mean()  # T(w) = #{i : S_i(w) > 0} / windows
        for size in np.minimum(_SIZES, len(gains))
    ]
    return float(np.mean(votes))  # sum_k T(w_k) / 10
