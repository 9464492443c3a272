"""Which device and which precision a model is held in."""

import resource
import sys

import torch

from merging.recipe import parse_dtype


def choose_device(name: str) -> torch.device:
    """Returns the device called `name`; ``auto`` is CUDA, then MPS, then the CPU.

    Raises:
        ValueError: unknown name, or no such device on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"device={name} is unknown: expected auto, cpu, cuda, cuda:N or mps"
        ) from None
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= present:
        raise ValueError(
            f"device={name}: this machine has {present} {device.type} device(s): "
            "use device=auto or device=cpu"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype called `name`; ``auto`` is bfloat16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return parse_dtype(name)


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the most memory that this process held: on the device if CUDA, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
