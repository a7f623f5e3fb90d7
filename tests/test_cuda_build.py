"""The CUDA engine as nvcc builds it: every kernel keeps within its means, and the module loads without a driver."""

import re
import subprocess
from pathlib import Path

import cubins
import pytest

import fastsmc as fs
from fastsmc import backends

_cuda = pytest.importorskip("fastsmc._cuda", reason="this package was built without the CUDA engine")
if _cuda.device() != "cuda":
    pytest.skip("the CUDA engine is its host twin", allow_module_level=True)
if not cubins.TOOLS.is_dir():
    pytest.skip("there is no cuobjdump: Triton's wheel has one", allow_module_level=True)

ARCHITECTURES = ("sm_80", "sm_90a")
REGISTERS = {
    "AdaptRow": 96,
    "AddSlices": 32,
    "CheckAncestors": 24,
    "CountParts": 40,
    "CountRow": 24,
    "Cumulate": 88,
    "Draw": 72,
    "Evaluate": 128,
    "Fill": 32,
    "FillVacancies": 80,
    "FindLargest": 40,
    "Gather": 64,
    "Leapfrog": 64,
    "NormalizeRow": 56,
    "PermuteRow": 64,
    "Place": 72,
    "ResampleRow": 80,
    "ScaleGroups": 56,
    "ScanParts": 80,
    "Settle": 64,
    "Store": 16,
    "SumGroups": 48,
    "SumMasses": 56,
    "SumParts": 48,
    "SumRow": 56,
}
"""The most that a kernel may take, whatever it is made for."""


def kernels(path):
    """The resources of kernels, by architecture and by the struct that holds their parameters."""
    found = cubins.usage(path)
    names = cubins.run("c++filt", *(name for _, name in found)).splitlines()
    structs = (re.search(r"run<(.*)>\(", name)[1].replace("fastsmc::cuda::", "") for name in names)
    return {(key[0], struct): figures for (key, figures), struct in zip(found.items(), structs, strict=True)}


BUILT = kernels(_cuda.__file__)


def check(struct, figures, budget):
    cubins.check_memory(figures)
    assert figures["REG"] <= budget[struct.partition("<")[0]], f"registers: {figures}"


@pytest.mark.parametrize(("architecture", "struct"), BUILT, ids=lambda part: part)
def test_a_kernel_keeps_within_its_means(architecture, struct):
    check(struct, BUILT[architecture, struct], REGISTERS)


def test_every_kernel_is_built_for_every_architecture_and_has_a_budget():
    by_architecture = [{struct for a, struct in BUILT if a == architecture} for architecture in ARCHITECTURES]
    assert len(BUILT) == sum(map(len, by_architecture))
    assert by_architecture[0] == by_architecture[1]
    assert {struct.partition("<")[0] for struct in by_architecture[0]} == set(REGISTERS)


def test_a_kernel_beyond_its_means_is_found_out():
    (struct, figures), *_ = ((s, f) for (_, s), f in BUILT.items() if s.startswith("Cumulate"))
    check(struct, figures, {"Cumulate": figures["REG"]})
    with pytest.raises(AssertionError, match="registers"):
        check(struct, figures, {"Cumulate": figures["REG"] - 1})
    for memory in ("STACK", "LOCAL"):
        with pytest.raises(AssertionError, match="local memory"):
            check(struct, figures | {memory: 8}, REGISTERS)


@pytest.fixture(scope="module")
def code():
    """Of all kernels, for every architecture."""
    return cubins.disassembled_library(_cuda.__file__)


def test_products_are_made_by_tensor_cores(code):
    assert "HMMA.16816.F32.BF16" in code


def test_nothing_is_spilled(code):
    cubins.check_memory({"LOCAL": 0, "STACK": 0}, cubins.instructions(code))


def test_no_library_of_cuda_is_needed():
    needed = subprocess.run(["ldd", _cuda.__file__], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in needed
    assert "cuda" not in needed.replace(Path(_cuda.__file__).name, "")


def test_it_says_in_one_sentence_why_there_is_no_device():
    ok, reason = backends.BACKENDS["cuda"].available()
    if ok:
        pytest.skip("there is a device")
    assert re.fullmatch(r"CUDA finds no device: [\w ]+", reason)
    with pytest.raises(ValueError, match=f"backend is 'cuda', but {reason}; available here"):
        fs.systematic([0.5, 0.5], 0.5, backend="cuda")


def test_the_report_says_what_it_is_built_for():
    assert re.fullmatch(r"CUDA 1\d\.\d for 80, 90a?-real", _cuda.built_with())
