"""``python -m fastsmc``."""

import sys

from fastsmc.cli import main

sys.exit(main())
