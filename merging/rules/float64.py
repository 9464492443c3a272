"""Where float64 exists: Apple's GPUs have none."""

import torch
from torch import Tensor


def float64_device(device: torch.device) -> torch.device:
    """Returns `device`, or the CPU for one that has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def in_float64(tensor: Tensor) -> Tensor:
    """Returns the tensor in float64, on `float64_device`."""
    return tensor.to(float64_device(tensor.device)).double()
