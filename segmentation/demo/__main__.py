"""Compose pictures of garments, train a small UperNet InternImage to label their pixels, evaluate it, and draw.

    python -m segmentation.demo [--output output] [--cfg-options KEY=VALUE ...]

Every step is an ordinary command, printed before it runs. A second run skips finished steps and resumes an interrupted
training from its latest checkpoint.
"""

from demo.steps import mm_demo

__all__ = ["main"]

CONFIG = "segmentation/configs/demo/upernet_internimage_demo.py"
PHOTOGRAPHS = {"astronaut.png": "astronaut.jpg", "chelsea.png": "chelsea.jpg"}  # not in the training composites


def main(argv: list[str] | None = None) -> None:
    mm_demo("segmentation", CONFIG, PHOTOGRAPHS, __doc__.splitlines()[0], argv)


if __name__ == "__main__":
    main()
