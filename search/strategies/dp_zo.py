"""DP-ZO: gradient descent by one noisy scalar per step, the difference of two fitness values."""

from collections.abc import Sequence

from merging.paths.path import Path
from search.checks import check_at_least, check_one_objective, check_positive
from search.loop.ask_tell import AskTell
from search.strategy import Candidate, Outcome


class DpZo:
    """Moves a centre along random directions, as far as the fitness differs between both sides.

    ``theta += learning_rate (f+ - f-) / (2 phi) u``, f+ and f- the fitness at ``theta + phi u``
    and ``theta - phi u``, u the space's noise number t. The directions depend on the run's seed
    alone and may be public.

    The strategy itself is no mechanism: with ``privacy=differences`` the fitness it is told is a
    half of the clipped and noised difference, and minus that, so that nothing it holds, writes
    or proposes is private beyond what has been paid for. Without, it is plain zeroth-order
    descent (MeZO, arXiv:2305.17333), for comparison. There is no dropout to be shared between
    both sides: models are asked in evaluation mode.

    Args:
        seed: not used; the directions' seed is the space's.
        starts: names of the points of the space to start from; one.
        phi: how far both sides lie from the centre, in the unit of the space's noise.
        learning_rate: eta; with private fitness, what a step may do is limited by
            ``learning_rate clip / (2 phi)`` times the direction, and noise.
        decay: factor of the learning rate from one step to the next.
        steps: most steps; None: the budget decides.

    Source: Tang, Panda, Nasr, Mahloujifar, Mittal 2024, Private fine-tuning of large language
    models with zeroth-order optimization, arXiv:2401.04343, algorithm 1. It has no decay.
    """

    compares_generations = False

    def __init__(
        self,
        *,
        seed: int,
        starts: Sequence[str],
        phi: float = 1e-3,
        learning_rate: float = 1e-3,
        decay: float = 1.0,
        steps: int | None = None,
    ) -> None:
        check_positive(phi=phi, learning_rate=learning_rate, decay=decay)
        check_at_least(1, steps=steps)
        if isinstance(starts, str) or len(starts) != 1:
            raise ValueError(f"DpZo starts from one point, starts must name one, got {starts!r}")
        self._phi = phi
        self._learning_rate = learning_rate
        self._decay = decay
        self._steps = steps
        self._ask_tell = AskTell[Path]()
        self._centre = Path(starts[0])
        self._step = 0

    def ask(self) -> list[Candidate[Path]]:
        """Returns both sides of the next direction, plus first; nothing after `steps`."""
        self._ask_tell.check_told()
        if self._step == self._steps:
            return self._ask_tell.ask([])
        sides = (self._phi, -self._phi)
        return self._ask_tell.ask([self._centre.perturbed(self._step, side) for side in sides])

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Moves the centre; a pair of which one failed moves nothing."""
        check_one_objective(self, outcomes)
        plus, minus = self._ask_tell.tell(outcomes)
        if plus.fitness is not None and minus.fitness is not None:
            # theta <- theta + eta decay^t (f+ - f-) / (2 phi) u_t
            slope = float(plus.fitness[0] - minus.fitness[0]) / (2 * self._phi)
            length = self._learning_rate * self._decay**self._step * slope
            if length:
                self._centre = self._centre.moved(((self._step, length),))
        self._step += 1

    def recommend(self) -> list[Path]:
        """Returns the centre as it is now: its own fitness is not known, nor is a side's."""
        return [self._centre] if self._step else []
