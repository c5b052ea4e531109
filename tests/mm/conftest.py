"""The tiny data sets and models of both tasks."""

import sys
from pathlib import Path

from mmengine.runner import Runner

sys.path += [str(Path(__file__).parents[1] / task) for task in ("detection", "segmentation")]
Runner._log_env = lambda *_: None  # takes longer than the trainings here
