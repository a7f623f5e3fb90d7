"""Drives CMake for the compiled engines; every other fact about the package stands in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configure and build csrc/ into the folder where setuptools expects the extensions.

    ``FASTSMC_CMAKE_ARGS`` is handed to CMake, for instance ``-DFASTSMC_CUDA=ON -DFASTSMC_SANITIZE=address``.
    """

    def build_extension(self, ext: Extension) -> None:
        if ext.optional:  # built with the other, if at all
            return
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / ext.name
        configure = [
            "cmake",
            "--fresh",  # an isolated build leaves a cache that names tools which are gone
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DFASTSMC_OUTPUT_DIR={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *os.environ.get("FASTSMC_CMAKE_ARGS", "").split(),
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", build], check=True)


OPTIONAL = [Extension(f"fastsmc.{name}", sources=[], optional=True) for name in ("_cuda", "_jax", "_jax_cuda")]
EXTENSIONS = [Extension("fastsmc._cpu", sources=[]), *OPTIONAL]
setup(ext_modules=EXTENSIONS, cmdclass={"build_ext": CMakeBuild})
