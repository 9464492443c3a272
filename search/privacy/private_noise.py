"""Secret noise: random numbers that belong to a question, not to the order of questions."""

import hashlib
import math
from statistics import NormalDist

_STANDARD = NormalDist()


class SecretNoise:
    """Random numbers derived from a secret key and from what is asked.

    The same question always gets the same noise, so that a step which is repeated after a crash
    is the same release and costs nothing more; another question gets independent noise, so that
    two answers cannot be subtracted to cancel it. Whoever knows the key can subtract the noise:
    it must never be released.

    Numbers are 53 bits fine. An attack on the floating-point grid of noise (Mironov 2012, On
    significance of the least significant bits) is not guarded against.

    Args:
        key: 16 to 64 secret bytes.
    """

    def __init__(self, key: bytes) -> None:
        if not 16 <= len(key) <= 64:
            raise ValueError(f"the key of private noise must have 16 to 64 bytes, got {len(key)}")
        self._key = key

    def uniform(self, *question: str | int) -> float:
        """Returns a number of (0, 1), the ends excluded."""
        digest = hashlib.blake2b(repr(question).encode(), key=self._key, digest_size=8).digest()
        return ((int.from_bytes(digest, "big") >> 11) + 0.5) / 2**53

    def normal(self, *question: str | int) -> float:
        """Returns a standard normal number."""
        return _STANDARD.inv_cdf(self.uniform("normal", *question))

    def laplace(self, *question: str | int) -> float:
        """Returns a Laplace number of scale 1."""
        centred = self.uniform("laplace", *question) - 0.5
        return -math.copysign(math.log1p(-2 * abs(centred)), centred)
