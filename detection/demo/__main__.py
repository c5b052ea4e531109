"""Compose pictures of garments, train a small Mask R-CNN InternImage on them, evaluate it, and draw what it finds.

    python -m detection.demo [--output output] [--cfg-options KEY=VALUE ...]

Every step is an ordinary command, printed before it runs. A second run skips finished steps and resumes an interrupted
training from its latest epoch.
"""

from demo.steps import mm_demo

__all__ = ["main"]

CONFIG = "detection/configs/demo/mask_rcnn_internimage_demo.py"


def main(argv: list[str] | None = None) -> None:
    photographs = {"astronaut.png": "photograph.jpg"}
    mm_demo("detection", CONFIG, photographs, __doc__.splitlines()[0], argv)


if __name__ == "__main__":
    main()
