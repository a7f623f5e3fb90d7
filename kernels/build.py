"""What is compiled ahead of time, to see that a kernel keeps within its means where there is no GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EXACT = {"enable_fp_fusion": False}
"""Compiler options of kernels whose bits count: a product and a sum become one instruction only where it says so."""
PRODUCTS = {**EXACT, "maxnreg": 255}
"""Of kernels of products: without the last the assembler spills, to make room for one more block."""
CAPABILITIES = (80, 90)
ROOMY = {"maxnreg": 128}
"""Of other kernels of which the same is true; 16 warps can have no more."""


@dataclass(frozen=True)
class Build:
    """A kernel in one configuration, and the resources that it may take on a GPU.

    ``signature`` and ``constexprs`` are as `triton.compiler.ASTSource` takes them; no build may spill, or use local
    memory, on cards of these compute capabilities.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    registers: int = 255
    shared: int = 232_448
    tensor_cores: bool = False
    options: dict[str, Any] = field(default_factory=EXACT.copy)
    capabilities: tuple[int, ...] = CAPABILITIES
