"""``python -m bench [--quick] [--only NAME] [--data-dir FOLDER]``: write bench/results/*.csv and the README's table."""

import argparse
import sys
from functools import partial
from pathlib import Path

from bench import drop_in, images, iteration, lenet, mlp_gradient, readme, resampling, scaling, trajectory
from bench.harness import QUICK, Bench, Effort

BENCHES = {
    "resampling": resampling.run,
    "mlp_gradient": mlp_gradient.run,
    "lenet": lenet.run,
    "trajectory": trajectory.run,
    "iteration": iteration.run,
    "images": images.run,
    "drop_in": drop_in.run,
    "scaling": scaling.run,
}
WITH_IMAGES = ("images", "drop_in")


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser("bench", description="Microbenchmarks against peers, measured in the same run.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repeats, nothing written")
    parser.add_argument("--seconds", type=float, default=Effort.seconds, help="at most this long for one case")
    parser.add_argument("--only", choices=BENCHES, help="run one of them")
    parser.add_argument("--data-dir", type=Path, help="the folder of MNIST's four IDX files, for the rows of it")
    args = parser.parse_args()
    benches = BENCHES | {name: partial(BENCHES[name], data_dir=args.data_dir) for name in WITH_IMAGES}
    for name, run in benches.items():
        if args.only in (None, name):
            run(QUICK if args.quick else Effort(seconds=args.seconds), args.quick)
    if not args.quick:
        readme.write()
    if Bench.failed:
        sys.exit("\n".join(Bench.failed))


if __name__ == "__main__":
    main()
