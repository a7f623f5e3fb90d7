"""Every kernel compiled for GPUs that need not be there: it must keep within its means."""

import pkgutil
import re
import tempfile
from importlib import import_module
from pathlib import Path

import cubins
import pytest

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fastsmc import backends  # noqa: E402

if backends.INTERPRETED:
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from fastsmc import kernels  # noqa: E402
from fastsmc.kernels.build import CAPABILITIES, Build  # noqa: E402

MODULES = [import_module(f"{kernels.__name__}.{module.name}") for module in pkgutil.iter_modules(kernels.__path__)]
BUILDS = [build for module in MODULES for build in getattr(module, "BUILDS", ())]
SHARED = {80: 166_912, 90: 232_448}
"""Bytes that a block may have, by the CUDA programming guide's table of compute capabilities."""
ALIGNED = [["tt.divisibility", 16]]
"""What the launcher finds out of pointers that torch allocates."""


triton.knobs.compilation.disable_line_info = True  # they take up to a tenth of the time


def compiled(build, capability):
    """The kernel as the launcher compiles it, but for the numbers of its lines."""
    pointers = {(k,): ALIGNED for k, kind in enumerate(build.signature.values()) if kind.startswith("*")}
    source = ASTSource(build.kernel, build.signature, build.constexprs, pointers)
    options = {"num_warps": build.num_warps, "num_stages": build.num_stages, **build.options}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def inspect(kernel):
    """Registers a thread, bytes of stack and of local memory; and the instructions, of a kernel with products."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        (figures,) = cubins.usage(path).values()
        code = cubins.disassembled(path) if "mma" in kernel.asm["ptx"] else ""  # it takes as long as to compile
    cubins.check_products(code)
    return figures, cubins.instructions(code)


def check(build, capability):
    kernel = compiled(build, capability)
    figures, instructions = inspect(kernel)
    cubins.check_memory(figures, instructions)
    assert figures["REG"] <= build.registers, f"registers: {figures}"
    assert kernel.metadata.shared <= min(build.shared, SHARED[capability]), "shared memory"
    assert bool({"HMMA", "HGMMA"} & instructions) == build.tensor_cores, "tensor cores"


@pytest.mark.parametrize(
    ("build", "capability"),
    [pytest.param(b, capability, id=f"{b.name}-{capability}") for b in BUILDS for capability in b.capabilities],
)
def test_a_kernel_keeps_within_its_means(build, capability):
    check(build, capability)


def test_the_largest_products_of_highest_are_summed_apart():
    """Of the six products two begin a sum, unless Triton makes one of product and sum, and cuts off what is summed."""
    build = next(b for b in BUILDS if b.name == "weight gradient of 100-10, precision 0, sm_90")
    products = re.findall(r"tt\.dot %\w+, %\w+, (%\w+)", compiled(build, 90).asm["ttir"])
    assert [start.startswith("%cst") for start in products] == [True] + 4 * [False] + [True]


@pytest.mark.parametrize("precision", range(3))
def test_packed_weights_are_copied_in_advance_sixteen_bytes_at_a_time(precision):
    """But for the tile of few outputs, unless a mask is at another multiple or a type is changed on the way."""
    name = f"gradient of 784-100-100-10, behind the first layer, precision {precision}, sm_90"
    build = next(b for b in BUILDS if b.name == name)
    ptx = compiled(build, 90).asm["ptx"]
    sizes = re.findall(r"cp\.async\.c[ag]\.shared\.global [^;]*?, 0x(\w+), ", ptx)
    assert len(sizes) > 20
    assert sizes.count("10") >= 0.75 * len(sizes)


def test_names_are_unique():
    names = [build.name for build in BUILDS]
    assert len(set(names)) == len(names)


@triton.jit
def _square(x, WIDTH: tl.constexpr, PRECISION: tl.constexpr):
    entries = x + tl.arange(0, WIDTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    values = tl.load(entries)
    tl.store(entries, tl.dot(values, values, input_precision=PRECISION))


def square(width, precision, **budget):
    signature = {"x": "*fp32", "WIDTH": "constexpr", "PRECISION": "constexpr"}
    constants, options = {"WIDTH": width, "PRECISION": precision}, {"enable_fp_fusion": True}
    return Build("square", _square, signature, constants, options=options, **budget)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (square(64, "ieee", num_warps=2), "local memory"),
        (square(64, "tf32", tensor_cores=True, registers=16), "registers"),
        (square(64, "tf32", tensor_cores=True, shared=1024), "shared memory"),
        (square(32, "ieee", tensor_cores=True), "tensor cores"),
        (square(64, "tf32"), "tensor cores"),
    ],
    ids=["spills", "registers", "shared", "no tensor cores", "tensor cores"],
)
def test_a_kernel_beyond_its_means_is_found_out(build, complaint, capability):
    with pytest.raises(AssertionError, match=complaint):
        check(build, capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_kernel_within_its_means_passes(capability):
    check(square(64, "tf32", tensor_cores=True), capability)
