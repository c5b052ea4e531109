"""Label every pixel of one image and draw the label map over it.

    python segmentation/image_demo.py IMAGE CONFIG CHECKPOINT --output picture.jpg

Released checkpoints work unchanged, by path or URL.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from internimage.mm.demo import image_demo
from internimage.mm.runner import SEGMENTATION

if __name__ == "__main__":
    image_demo(SEGMENTATION)
