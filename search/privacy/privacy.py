"""What a search on private items may cost, and what it releases."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from merging.checkpoints.mechanisms import PureEpsilon, SparseVector
from search.checks import check_positive, check_private_data
from search.privacy.private import Release
from search.privacy.private_budget import StepBudget
from search.privacy.private_noise import largest_part


@dataclass(frozen=True)
class SearchPrivacy:
    """The budget of a search on private items, and its mechanisms.

    In neighbouring data sets one item is replaced by one that contributes nothing; how many there
    are is public, and so are the mean bytes of texts that are scored per byte or word and what the
    configuration says. An item that stands for several people, or one person who fills several
    items, is protected as a group.

    Args:
        data: name of the private data set, for the ledger.
        epsilon: what the whole run may cost, all mechanisms together.
        delta: of the whole, below 1 / items.
        clip: C, most that an item contributes to a sum: to a mean with ``release=means``, to the
            difference between both sides with ``release=differences``.
        noise_multiplier: sigma, the noise of a sum in units of C.
        release: ``means``: every candidate's noisy fitness, for any strategy; ``differences``:
            of every pair the difference alone, for ``strategy=dp_zo``.
        unit: what an item stands for, for the ledger; spends in different units do not compose.
        disjoint_from: data sets of the ledger that share no unit with this one, such as those
            that the experts were trained on; all others are taken to overlap with it.
        public: splits whose items are not private (``selection``, ``report``): they are read as
            in any search.
        reading_epsilon: price of the winner's noisy fitness on the search items, where nothing
            that was released tells it (``choose=last`` or ``svt`` with differences).
        reading_clip: most that an item contributes to this fitness.
        svt_epsilon: price of ``choose=svt``.
        svt_margin: by how much per item a finalist must be better than the start to be taken.
        svt_clip: most that an item contributes to this.
        randomness: ``secret``: noise and samples from a key that the run draws and destroys when
            it is finished; ``seed``: from the run's seed, for tests: whoever knows the
            configuration can subtract the noise, so that the result is not private.
    """

    data: str
    epsilon: float
    delta: float
    clip: float
    noise_multiplier: float
    release: Release = "means"
    unit: str = "record"
    disjoint_from: Sequence[str] = ()
    public: Sequence[str] = ()
    reading_epsilon: float = 0.5
    reading_clip: float = 1.0
    svt_epsilon: float = 1.0
    svt_margin: float = 0.0
    svt_clip: float = 1.0
    randomness: Literal["secret", "seed"] = "secret"

    def __post_init__(self) -> None:
        check_private_data(self.data, self.unit, self.disjoint_from)
        check_positive("privacy.", epsilon=self.epsilon, clip=self.clip)
        check_positive("privacy.", noise_multiplier=self.noise_multiplier)
        largest_part(self.noise_multiplier)
        check_positive("privacy.", reading_epsilon=self.reading_epsilon)
        check_positive("privacy.", reading_clip=self.reading_clip)
        check_positive("privacy.", svt_epsilon=self.svt_epsilon, svt_clip=self.svt_clip)
        if not math.isfinite(self.svt_margin):
            raise ValueError(f"privacy.svt_margin must be finite, got {self.svt_margin}")
        if not 0 < self.delta < 1:
            raise ValueError(f"privacy.delta must be above 0 and below 1, got {self.delta}")
        unknown = [split for split in self.public if split not in ("selection", "report")]
        if unknown:
            raise ValueError(
                f"privacy.public names {unknown[0]!r}: only selection and report items can be "
                "declared public, the search items are what is private"
            )

    def reserved(self, choose: str) -> tuple[PureEpsilon, ...]:
        """Returns the mechanisms that the end of the run needs, by how the winner is chosen."""
        mechanisms: list[PureEpsilon] = []
        if choose == "svt":
            mechanisms.append(SparseVector(self.svt_epsilon))
        if choose in ("svt", "last") and self.release == "differences":
            # Discrete Laplace noise is no continuous one, whose divergences are a little smaller.
            mechanisms.append(PureEpsilon(self.reading_epsilon))
        return tuple(mechanisms)

    def budget(self, choose: str, rate: float) -> StepBudget:
        """Returns the count of what the generations cost; see `StepBudget`.

        Args:
            choose: how the winner is named.
            rate: of a Poisson sample; 1: all items, or a share of fixed size: amplifies nothing.
        """
        return StepBudget(
            epsilon=self.epsilon,
            delta=self.delta,
            noise_multiplier=self.noise_multiplier,
            rate=rate,
            reserved=self.reserved(choose),
        )
