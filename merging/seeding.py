"""Random generators seeded by meaning: run seed, expert, tensor name; never by call order."""

import hashlib
import secrets

import numpy as np
import torch


def stable_seed(*parts: str | int) -> int:
    """Returns a 63-bit seed that depends on `parts` alone, the same on every machine.

    Example:
        >>> stable_seed(0, "a", "b") == stable_seed(0, "a", "b") != stable_seed(0, "ab", "")
        True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: str | int) -> torch.Generator:
    """Returns a CPU generator seeded by `parts`; on CPU so that every device sees one noise."""
    return torch.Generator(device="cpu").manual_seed(stable_seed(*parts))


def secret_generator() -> np.random.Generator:
    """Returns a generator that nobody can build again, for the noise that privacy rests on.

    Its 128 bits of state come from the operating system. A generator of torch on the CPU keeps
    only 32 bits of its seed, which can all be tried. PCG64 is no cryptographic generator: the
    guarantee is that noise cannot be guessed, not that it withstands whoever sees long pieces of
    it in the clear.
    """
    return np.random.Generator(np.random.PCG64DXSM(secrets.randbits(256)))
