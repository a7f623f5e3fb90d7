"""Other libraries' own tests, from their published sources, run against our functions: ``make test-peers``.

Arguments are pytest's, but for ``--library``. Of the libraries that we have something for, blackjax and Stone Soup
publish their tests of SMC with their sources. Those of cuthbert, PyMC and Pyro are in their repositories alone, and
particles has none.
"""

import argparse
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
    """Tests of an installed library: a folder of its source distribution."""

    library: str
    folder: str

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
        return subprocess.run([*command, self.folder], cwd=self.sources(), env=environment).returncode


FOLDERS = {"blackjax": "tests/smc", "stonesoup": "stonesoup/resampler/tests"}
"""Of tests, by library."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser("tests/peers", allow_abbrev=False)
    parser.add_argument("--library", action="append", choices=FOLDERS, help="whose tests; all of them if not given")
    chosen, arguments = parser.parse_known_args()
    sys.exit(max(Suite(library, FOLDERS[library]).run(arguments) for library in chosen.library or FOLDERS))
