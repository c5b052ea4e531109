"""Evaluate a detector; released checkpoints work unchanged.

    python detection/test.py CONFIG CHECKPOINT
    python detection/test.py CONFIG CHECKPOINT --predictions results.pkl --show-dir pictures --tta

Several processes: `dist_test.sh` and `slurm_test.sh` next to this file. See docs/detection.md.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from internimage.mm.runner import DETECTION, test

if __name__ == "__main__":
    test(DETECTION)
