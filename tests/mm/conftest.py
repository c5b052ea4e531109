"""The tiny data sets and models of both tasks."""

import sys
from pathlib import Path

from quick_mmengine import make_quick

sys.path += [str(Path(__file__).parents[1] / task) for task in ("detection", "segmentation")]
make_quick()
