"""Draw training images with their annotations, as the training pipeline gives them.

    python -m internimage.mm.browse CONFIG [--output browse] [--count 12]

The pictures show whether images, annotations or label maps, and class names match.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.runner import set_random_seed

from ..errors import ArgumentParser, UserError, exit_on_user_error
from .checks import add_config, check_data_files, explained, explained_empty, read_config

__all__ = ["main"]


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Write pictures of some training images, spread over the whole set, with their annotations."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_config(parser)
    help = "folder for the pictures; defaults to %(default)s"
    parser.add_argument("--output", "--out", type=Path, default=Path("browse"), help=help)
    parser.add_argument("--count", type=int, default=12, help="number of images; defaults to %(default)s")
    args = parser.parse_args(argv)
    config = read_config(args.config, args.cfg_options)
    check_data_files(config, ("train",))
    init_default_scope(config.get("default_scope", "mmengine"))
    set_random_seed(0)
    with explained(), explained_empty("train"):
        dataset = DATASETS.build(config.train_dataloader.dataset)
        if len(dataset) == 0:
            raise UserError("train_dataloader has no image")
        visualizer = VISUALIZERS.build({**config.visualizer, "vis_backends": None, "name": "browse"})
        visualizer.dataset_meta = dataset.metainfo
        count = min(args.count, len(dataset))
        for number in range(count):
            item = dataset[number * len(dataset) // count]
            sample = item["data_samples"]
            if "gt_instances" in sample:
                boxes = sample.gt_instances.bboxes
                sample.gt_instances.bboxes = getattr(boxes, "tensor", boxes)
            image = np.ascontiguousarray(item["inputs"].numpy().transpose(1, 2, 0)[..., ::-1])  # from (3, H, W), BGR
            path = args.output / f"{number:03d}_{Path(sample.img_path).stem}.jpg"
            visualizer.add_datasample("browse", image, sample, draw_pred=False, out_file=str(path))
    print(f"{len(dataset)} training images; {count} of them, at equal distances, are in {args.output}")


if __name__ == "__main__":
    main()
