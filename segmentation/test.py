"""Evaluate a segmentor; released checkpoints work unchanged.

    python segmentation/test.py CONFIG CHECKPOINT
    python segmentation/test.py CONFIG CHECKPOINT --tta --predictions label_maps --show-dir pictures

Several processes: `dist_test.sh` and `slurm_test.sh` next to this file. See docs/segmentation.md.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from internimage.mm.runner import SEGMENTATION, test

if __name__ == "__main__":
    test(SEGMENTATION)
