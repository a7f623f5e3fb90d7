"""What CMake says of the engines that are asked for."""

import os
import shutil
import subprocess
from pathlib import Path

import cmake
import pybind11
import pytest

ROOT = Path(__file__).parents[1]
CMAKE = Path(cmake.CMAKE_BIN_DIR) / "cmake"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of one build, so that what CMake asks of compilers is asked once."""
    return tmp_path_factory.mktemp("build")


def configure(folder, cuda, *options):
    """Configure where there is no nvcc; the exit status and what was said."""
    shutil.rmtree(folder / "csrc", ignore_errors=True)
    paths = [p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "nvcc").exists()]
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_PATH", "CUDA_HOME")}
    command = [CMAKE, "-S", ROOT, "-B", folder, f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DFASTSMC_CUDA={cuda}"]
    done = subprocess.run(
        [*map(str, command), *options],
        env={**environment, "PATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize(("cuda", "built"), [("AUTO", False), ("OFF", False), ("HOST", True)])
def test_without_nvcc_the_cpu_engine_is_built(folder, cuda, built):
    status, said = configure(folder, cuda)
    assert status == 0, said
    assert (folder / "csrc" / "cuda").exists() == built


@pytest.mark.parametrize(
    ("cuda", "sentence"),
    [
        ("ON", "FASTSMC_CUDA=ON, but there is no nvcc"),
        ("YES", "FASTSMC_CUDA=YES, but it must be AUTO, ON, OFF or HOST"),
    ],
)
def test_what_cannot_be_built_is_refused(folder, cuda, sentence):
    status, said = configure(folder, cuda)
    assert status != 0
    assert sentence in said


def test_another_compiler_than_gcc_is_refused(tmp_path):
    status, said = configure(tmp_path, "OFF", "-DCMAKE_CXX_COMPILER_ID=Clang")
    assert status != 0
    assert "The C++ compiler is Clang, but it must be GCC; name g++ by CXX" in said
