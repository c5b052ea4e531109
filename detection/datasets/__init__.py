"""Data sets and result files that mmdet does not have, and converters to formats that it has.

Importing this registers `VOCTestDataset` and `VOCResultFiles` and lets `LVISMetric` run on current numpy; the
configurations that need it name it in `custom_imports`. The converters are scripts: `bdd100k.py`,
`crowd_human.py`, `openimages.py` and, for your own data, `own_data.py`.
"""

import internimage.mm  # noqa: F401 - before mmdet is imported

from .lvis import repair_lvis
from .voc import VOCResultFiles, VOCTestDataset

__all__ = ["VOCResultFiles", "VOCTestDataset"]

repair_lvis()
