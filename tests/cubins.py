"""What the assembler made of kernels, as CUDA's tools tell: those of Triton's wheel, or of a toolkit on the path."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path


def _tools():
    if (spec := find_spec("triton")) is None or spec.origin is None:
        return Path()
    return Path(spec.origin).parent / "backends" / "nvidia" / "bin"


TOOLS = _tools()


def run(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def usage(path):
    """Registers a thread, bytes of stack and of local memory of every function in a file, by architecture and name."""
    found, architecture = {}, None
    function = ""
    for line in run(TOOLS / "cuobjdump", "--dump-resource-usage", path).splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r" *Function (\S+):", line):
            function = match[1]
        elif "REG:" in line:
            found[architecture, function] = {
                name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", line)
            }
    return found


def disassembled(cubin):
    """The code of a cubin."""
    return run(TOOLS / "nvdisasm", "--no-dataflow", "--print-code", cubin)


def disassembled_library(path):
    """The code of all cubins in a library, which takes twice as long."""
    return run(TOOLS / "cuobjdump", "--dump-sass", path)


def instructions(code):
    """All that occur."""
    return set(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", code, re.M))


def check_memory(figures, found=frozenset()):
    """Refuse local memory in the resources of a kernel, and in its instructions."""
    assert figures["LOCAL"] == figures["STACK"] == 0, f"local memory: {figures}"
    assert not {"LDL", "STL"} & found, "spills"


def check_products(code):
    """Refuse products on nothing: what is left of those whose result the assembler takes for unused, wrongly or not."""
    dead = re.findall(r"HGMMA\S+ RZ, gdesc\[URZ\].*", code)
    assert not dead, f"{len(dead)} products are dead: {dead[0]}"
