"""Secret noise in whole numbers, which belongs to a question, not to the order of questions.

What is released is a whole number: contributions rounded to a grid and summed without rounding,
and noise of the discrete Gaussian or discrete Laplace distribution. A float that is made of this
number alone says no more than it does. The rounding of continuous noise to floats instead tells
neighbouring data sets apart (Mironov 2012, On significance of the least significant bits).

Source: Canonne, Kamath, Steinke 2020, The discrete Gaussian for differential privacy,
arXiv 2004.00010, algorithms 1 to 3. Every decision compares whole random numbers with whole
numbers: the distributions are those of their formulas, with no rounding in them.
"""

import hashlib
import math
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]

SCALE = 2**24
"""Standard deviation of the discrete Gaussian noise, in units of the grid."""

_BLOCK = 2**18


def largest_part(noise_multiplier: float, tensors: int = 1) -> int:
    """Returns the most that an item may contribute to a sum, in units of the grid, at least 1.

    ``floor(SCALE / (sigma sqrt(L)))``, exactly: an item that changes L sums by so much in
    Euclidean norm each meets noise of at least sigma times what it changes them by together.

    Raises:
        ValueError: with so much noise nothing would be left of an item.
    """
    part = math.isqrt(int(SCALE**2 // (Fraction(noise_multiplier) ** 2 * tensors)))
    if part == 0:
        raise ValueError(
            f"noise_multiplier={noise_multiplier:g} for {tensors} sums at once leaves nothing of "
            f"an item: choose less than {SCALE / math.sqrt(tensors):.4g}"
        )
    return part


def laplace_scale(sensitivity: int, epsilon: Fraction | float) -> int:
    """Returns the least scale of whole numbers that is at least ``sensitivity / epsilon``."""
    return math.ceil(sensitivity / Fraction(epsilon))


class SecretNoise:
    """Random numbers derived from a secret key and from what is asked.

    The same question always gets the same noise, so that a step which is repeated after a crash
    is the same release and costs nothing more; another question gets independent noise, so that
    two answers cannot be subtracted to cancel it. Whoever knows the key can subtract the noise:
    it must never be released.

    Args:
        key: 16 to 64 secret bytes.
    """

    def __init__(self, key: bytes) -> None:
        if not 16 <= len(key) <= 64:
            raise ValueError(f"the key of private noise must have 16 to 64 bytes, got {len(key)}")
        self._key = key

    def uniform(self, *question: str | int) -> float:
        """Returns a number of (0, 1), the ends excluded, 53 bits fine; decides who is sampled."""
        return ((int.from_bytes(self._seed(question)[:8], "big") >> 11) + 0.5) / 2**53

    def gaussian(self, count: int, *question: str | int) -> Integers:
        """Returns ``(count,)`` of ``P(k) ~ exp(-k^2 / (2 SCALE^2))``."""
        bits = Bits(self._seed(("gaussian", *question)))
        starts = range(0, count, _BLOCK)
        parts = [discrete_gaussian(bits, SCALE, min(_BLOCK, count - start)) for start in starts]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def laplace(self, scale: int, *question: str | int) -> int:
        """Returns one number of ``P(k) ~ exp(-|k| / scale)``."""
        return int(discrete_laplace(Bits(self._seed(("laplace", *question))), scale, 1)[0])

    def bits(self, *question: str | int) -> "Bits":
        """Returns random bits for noise of other kinds."""
        return Bits(self._seed(("bits", *question)))

    @property
    def identity(self) -> str:
        """Names the key without telling it."""
        return self._seed(("identity",))[:8].hex()

    def name(self, *private: str | int) -> str:
        """Returns 12 digits that tell what is private from others, and nobody what it is."""
        return self._seed(("name", *private))[:6].hex()

    def _seed(self, question: tuple[str | int, ...]) -> bytes:
        return hashlib.blake2b(repr(question).encode(), key=self._key, digest_size=32).digest()


class Bits:
    """A stream of random bits that nobody can foretell without its seed: SHAKE-128, in counts.

    Args:
        seed: secret, used for nothing else.
    """

    def __init__(self, seed: bytes) -> None:
        self._seed, self._drawn = seed, 0

    def below(self, bound: int, count: int) -> Integers:
        """Returns ``(count,)`` whole numbers that are uniform in ``[0, bound)``, bound <= 2^62."""
        bits = (bound - 1).bit_length()
        numbers = self._of_bits(bits, count)
        while (outside := np.flatnonzero(numbers >= bound)).size:
            numbers[outside] = self._of_bits(bits, outside.size)
        return numbers

    def _of_bits(self, bits: int, count: int) -> Integers:
        width = next(width for width in (1, 2, 4, 8) if bits <= 8 * width)
        self._drawn += 1
        stream = hashlib.shake_128(self._seed + self._drawn.to_bytes(8, "big"))
        words = np.frombuffer(stream.digest(width * count), f"<u{width}")
        numbers: Integers = (words & words.dtype.type((1 << bits) - 1)).astype(np.int64)
        return numbers


def discrete_gaussian(bits: Bits, scale: int, count: int) -> Integers:
    """Returns ``(count,)`` of ``P(k) ~ exp(-k^2 / (2 scale^2))``; algorithm 3 with t = scale.

    Exact below 181 scales, what lies beyond has a chance below 2^-200 (scale up to 2^24).
    """
    drawn = np.empty(count, np.int64)
    open_ = np.arange(count)
    while open_.size:
        proposed = discrete_laplace(bits, scale, open_.size)
        # (|y| - scale^2 / t)^2 / (2 scale^2)
        kept = bernoulli_exp(bits, (np.abs(proposed) - scale) ** 2, 2 * scale**2)
        drawn[open_[kept]] = proposed[kept]
        open_ = open_[~kept]
    return drawn


def discrete_laplace(bits: Bits, scale: int, count: int) -> Integers:
    """Returns ``(count,)`` of ``P(k) ~ exp(-|k| / scale)``; algorithm 2 with s = 1."""
    drawn = np.empty(count, np.int64)
    open_ = np.arange(count)
    while open_.size:
        low = bits.below(scale, open_.size)
        kept = _bernoulli_exp_fraction(bits, low, scale)
        high = np.zeros(open_.size, np.int64)
        rising = np.flatnonzero(kept)
        while rising.size:  # geometric: so many times exp(-1) until the first no
            rising = rising[_bernoulli_exp_fraction(bits, np.ones(rising.size, np.int64), 1)]
            high[rising] += 1
        size = low + scale * high
        negative = bits.below(2, open_.size) == 1
        kept &= ~(negative & (size == 0))  # else 0 would be drawn twice as often
        drawn[open_[kept]] = np.where(negative, -size, size)[kept]
        open_ = open_[~kept]
    return drawn


def bernoulli_exp(bits: Bits, above: Integers, below: int) -> Booleans:
    """Returns ``(lanes,)`` that are true with the chance ``exp(-above / below)``; algorithm 1."""
    whole, rest = np.divmod(above, below)
    true = _bernoulli_exp_fraction(bits, rest, below)
    pending = np.flatnonzero(true & (whole > 0))
    while pending.size:  # exp(-1), whole times
        true[pending] = _bernoulli_exp_fraction(bits, np.ones(pending.size, np.int64), 1)
        whole[pending] -= 1
        pending = pending[true[pending] & (whole[pending] > 0)]
    return true


def _bernoulli_exp_fraction(bits: Bits, above: Integers, below: int) -> Booleans:
    """`bernoulli_exp` where ``gamma = above / below`` is in [0, 1].

    The first K of 1, 2, ... for which a coin of chance ``gamma / K`` falls on no is odd with the
    chance ``exp(-gamma)``.
    """
    odd = np.ones(len(above), bool)
    lanes = np.arange(len(above))
    number = 1
    while lanes.size:
        yes = bits.below(below, lanes.size) < above[lanes]
        lanes = lanes[yes]
        if number > 1:
            lanes = lanes[bits.below(number, lanes.size) == 0]
        odd[lanes] ^= True
        number += 1
    return odd
