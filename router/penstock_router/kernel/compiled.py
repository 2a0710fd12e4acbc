"""What compiles the kernel: its files, and those whose constants it takes in; and the types of its arrays."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from penstock_core import profile

from penstock_router import columns
from penstock_router.machine_code import Compiler

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Owners = NDArray[np.int32]
"""Row by index slot, shape (65536,); −1: none of ours."""
Slots = NDArray[np.uint16]
Chunks = NDArray[np.int32]

SOURCES = (*sorted(Path(__file__).parent.glob("*.py")), Path(columns.__file__), Path(profile.__file__))
compiled = Compiler(*SOURCES)
COMPILED = compiled.works
