"""Print a segmentor's parameters and FLOPs by the published convention.

python segmentation/get_flops.py CONFIG [--size 512 2048]
"""

import sys
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from internimage.mm.flops import get_flops

if __name__ == "__main__":
    get_flops((512, 2048))
