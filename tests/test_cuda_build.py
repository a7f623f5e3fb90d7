"""The CUDA engine as nvcc builds it: every kernel keeps within its means, and the module loads without a driver."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import cubins
import numpy as np
import pytest

import fastsmc as fs
from fastsmc import backends

_cuda = pytest.importorskip("fastsmc._cuda", reason="this package was built without the CUDA engine")
if _cuda.device() != "cuda":
    pytest.skip("the CUDA engine is its host twin", allow_module_level=True)
if not cubins.TOOLS.is_dir():
    pytest.skip("there is no cuobjdump: Triton brings it", allow_module_level=True)

ARCHITECTURES = ("sm_80", "sm_90a")
REGISTERS = {}


def kernels(path):
    """Resources of the kernels in a file, by architecture and the struct that is a kernel's parameters."""
    found = cubins.usage(path)
    names = cubins.run("c++filt", *(name for _, name in found)).splitlines()
    structs = (re.search(r"run<(.*)>\(", name) for name in names)
    shown = (match[1].replace("fastsmc::cuda::", "").replace(" >", ">") for match in structs)
    return {(key[0], name): figures for (key, figures), name in zip(found.items(), shown, strict=True)}
