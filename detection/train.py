"""Train a detector.

    python detection/train.py detection/configs/coco/mask_rcnn_internimage_t_fpn_1x_coco.py
    python detection/train.py CONFIG --resume --cfg-options train_dataloader.batch_size=4

Several processes: `dist_train.sh` and `slurm_train.sh` next to this file. See docs/detection.md.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from internimage.mm.runner import DETECTION, train

if __name__ == "__main__":
    train(DETECTION)
