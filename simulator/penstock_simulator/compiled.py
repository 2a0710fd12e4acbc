"""What compiles the pass loop: the simulator's own files, and those of the router and core whose constants it takes in."""

from pathlib import Path

from penstock_router import kernel
from penstock_router.machine_code import Compiler

_OWN = ("compiled", "engine_model", "fleet", "kv_cache", "workload")

compiled = Compiler(*(Path(__file__).with_name(f"{name}.py") for name in _OWN), *kernel.SOURCES)
compiled_part = compiled.part
