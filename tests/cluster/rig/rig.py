#!/usr/bin/env python3
"""Run the rig: `python tests/cluster/rig/rig.py --help`. The commands are in cli.py."""

import sys
from pathlib import Path

# A script's own folder heads the path, where this file's name would shadow the package that the folder is.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from rig.cli import main  # noqa: E402 - the path must be right first

sys.exit(main())
