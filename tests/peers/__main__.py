"""Other libraries' own tests, from their published sources, run against our functions: ``make test-peers``.

Arguments are pytest's. Of the libraries that we have something for, blackjax publishes the tests of its SMC with its
sources. Those of cuthbert and PyMC are in their repositories alone, and particles has none.
"""

import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "build" / "peers"


@dataclass(frozen=True)
class Suite:
    """Tests of an installed library: folders of its source distribution."""

    library: str
    folders: tuple[str, ...]

    def sources(self) -> Path:
        """Where the sources of the installed version are, fetched if they are not there."""
        name = f"{self.library}-{version(self.library)}"
        if not (SOURCES / name).is_dir():
            requirement = name.replace("-", "==")
            command = ("download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(SOURCES), requirement)
            subprocess.run([sys.executable, "-m", "pip", *command], check=True)
            with tarfile.open(SOURCES / f"{name}.tar.gz") as archive:
                archive.extractall(SOURCES, filter="data")
        return SOURCES / name

    def run(self, arguments: list[str]) -> int:
        """Run them; returns pytest's exit status."""
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "FASTSMC_ACCELERATE": self.library, "PYTHONPATH": path}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "accelerated", "-p", "no:cacheprovider", *arguments]
        return subprocess.run([*command, *self.folders], cwd=self.sources(), env=environment).returncode


SUITES = (Suite("blackjax", ("tests/smc",)),)

if __name__ == "__main__":
    sys.exit(max(suite.run(sys.argv[1:]) for suite in SUITES))
