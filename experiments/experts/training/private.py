"""DP-SGD by opacus: gradients per record, clipped and noised sums, and what they cost.

Noise and gradients are float32, as in all of DP-SGD: what it costs is stated for exact arithmetic,
and the ledger says so. Nobody sees the noised sums, only weights that all of them have moved, but
an attack on their last bits (Mironov 2012) is not guarded against.
"""

import math
import secrets
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.experts.training.regime import TrainingPrivacy
from merging.seeding import secret_generator

try:
    from opacus import GradSampleModule
    from opacus.accountants import create_accountant
    from opacus.accountants.utils import get_noise_multiplier
    from opacus.optimizers import DPOptimizer
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "training with privacy needs opacus: install evomerge with its extra, pip install "
        "'evomerge[dp]'"
    ) from error

_TOLERANCE = 0.001  # of the guarantee that the noise is chosen for


def noise_for(privacy: TrainingPrivacy, sample_rate: float, updates: int) -> float:
    """Returns the noise multiplier that a regime asks for, or needs for its epsilon."""
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    with _quiet_accountant():
        return float(
            get_noise_multiplier(
                target_epsilon=privacy.epsilon,
                target_delta=privacy.delta,
                sample_rate=sample_rate,
                steps=updates,
                accountant=privacy.accountant,
                epsilon_tolerance=_TOLERANCE,
            )
        )


class TrainingSpend:
    """What has been spent so far: every update counts, whoever was in its lot."""

    def __init__(
        self, privacy: TrainingPrivacy, noise_multiplier: float, sample_rate: float
    ) -> None:
        self._privacy, self._noise, self._rate = privacy, noise_multiplier, sample_rate
        self._accountant = create_accountant(mechanism=privacy.accountant)

    def count(self) -> None:
        """Counts one update."""
        if self._noise > 0:
            self._accountant.step(noise_multiplier=self._noise, sample_rate=self._rate)

    def epsilon(self) -> float:
        """Returns the guarantee at the regime's delta; infinity without noise."""
        if self._noise == 0:
            return math.inf
        with _quiet_accountant():
            return float(self._accountant.get_epsilon(delta=self._privacy.delta))


@contextmanager
def _quiet_accountant() -> Iterator[None]:
    """Silences that more orders could give a smaller epsilon: the larger one holds as well."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield


@contextmanager
def per_record_gradients(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the model so that a sum of record losses leaves every record's own gradient.

    After ``backward``, ``parameter.grad_sample`` has shape ``(records, *parameter)``.
    """
    wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            # Token ids have no gradient, which is no surprise.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield wrapped
    finally:
        wrapped.to_standard_module()


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """Sums clipped gradients of records, adds noise, divides by the expected lot, and steps.

    Args:
        noise_multiplier: standard deviation of the noise over the clip norm.
        seed: of the noise; None: secret, drawn from the operating system.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        privacy: TrainingPrivacy,
        *,
        noise_multiplier: float,
        lot: int,
        seed: int | None,
        device: torch.device,
    ) -> None:
        drawn = secrets.randbits(63) if seed is None else seed
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=privacy.clip,
            expected_batch_size=lot,
            loss_reduction="mean",
            generator=torch.Generator(device).manual_seed(drawn),
        )
        # torch's generator on the CPU, unlike that on CUDA, keeps 32 bits of a seed only.
        secret = seed is None and device.type == "cpu"
        self._secret = secret_generator() if secret else None
        self._as_released = privacy.clipping == "as_released"

    def add(self, tokens: Tensor) -> None:
        """Adds the clipped gradients of records of ``(records,)`` tokens to the update's sum."""
        if self._as_released:
            for parameter in self.params:
                _require(parameter).mul_(tokens.view(-1, *[1] * parameter.dim()))
            self._add_as_released(tokens)
        else:
            for parameter in self.params:  # one broken record must not be told from the noise
                _require(parameter).nan_to_num_(0.0, 0.0, 0.0)
            self.clip_and_accumulate()  # s <- s + sum_i g_i min(1, C / ||g_i||)
        for parameter in self.params:
            parameter.grad_sample = None

    def finish(self) -> None:
        """Adds the noise, takes the step and forgets the sum.

        An update without any record is noise alone: were it left out, its absence would tell
        that a record is not in the data.
        """
        for parameter in self.params:
            if parameter.summed_grad is None:
                parameter.summed_grad = torch.zeros_like(parameter)
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        self.add_noise()  # s + sigma C z, z standard normal
        self.scale_grad()  # g = (s + sigma C z) / L, L the expected lot
        self.original_optimizer.step()
        self.zero_grad()

    def add_noise(self) -> None:
        """Adds noise to the clipped sums, of the stated scale and from the stated source."""
        if self._secret is None:
            super().add_noise()
            return
        scale = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            total: Tensor = parameter.summed_grad
            drawn = np.asarray(self._secret.standard_normal(tuple(total.shape), np.float32))
            parameter.grad = (total + scale * torch.from_numpy(drawn).to(total)).view_as(parameter)

    def _add_as_released(self, tokens: Tensor) -> None:
        """Adds sums over tokens, each times the coefficient that clips the mean over tokens."""
        norms = record_norms([_require(parameter) for parameter in self.params])
        # min(1, C / (||T_i g_i|| / T_i)) on T_i g_i, where C / ||T_i g_i|| would be right
        factors = (self.max_grad_norm / (norms / tokens.clamp(min=1) + 1e-6)).clamp(max=1.0)
        for parameter in self.params:
            total = torch.einsum("i,i...", factors, _require(parameter))
            before: Any = parameter.summed_grad
            parameter.summed_grad = total if before is None else before + total


def record_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Returns ``(records,)`` norms over all parameters; each gradient ``(records, *shape)``."""
    squares = [gradient.flatten(1).square().sum(dim=1) for gradient in gradients]
    return torch.stack(squares).sum(dim=0).sqrt()


def _require(parameter: Any) -> Tensor:
    gradient: Tensor | None = parameter.grad_sample
    assert gradient is not None, "no record went backward"
    return gradient
