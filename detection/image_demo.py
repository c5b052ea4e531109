"""Detect the objects in one image and draw them.

    python detection/image_demo.py IMAGE CONFIG CHECKPOINT --output picture.jpg

Released checkpoints work unchanged, by path or URL.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from internimage.mm.demo import image_demo
from internimage.mm.runner import DETECTION

if __name__ == "__main__":
    image_demo(DETECTION)
