"""Names of the arrays that all packages pass around."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float64]
"""Numbers in one dimension, such as a genome: ``(axes,)``."""

Matrix: TypeAlias = npt.NDArray[np.float64]
"""Numbers in two dimensions."""

Flags: TypeAlias = npt.NDArray[np.bool_]
"""Which of several things, such as items."""
