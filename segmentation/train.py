"""Train a segmentor.

    python segmentation/train.py segmentation/configs/ade20k/upernet_internimage_t_512_160k_ade20k.py
    python segmentation/train.py CONFIG --resume --cfg-options train_dataloader.batch_size=4

Several processes: `dist_train.sh` and `slurm_train.sh` next to this file. See docs/segmentation.md.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from internimage.mm.runner import SEGMENTATION, train

if __name__ == "__main__":
    train(SEGMENTATION)
