"""Write a data set for classification as tar files in WebDataset's layout, `KEY.jpg` and `KEY.cls`.

    python tools/make_shards.py DATA SHARDS

Every tar file of a split has the same number of images, also of each class, to within one, in random order. The same
data give the same bytes. `SHARDS/classes.txt` has the class names, for `--class-names` of `predict.py`.
"""

import io
import os
import sys
import tarfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from classification.config import get_config, parse_args
from classification.data.samples import Samples
from classification.data.splits import open_splits
from classification.data.tars import find_shards, read_tars
from internimage.errors import ArgumentParser, UserError, exit_on_user_error
from internimage.files import atomic_path

__all__ = ["main"]

_RECIPE = Path(__file__).resolve().parents[1] / "classification/configs/internimage_t_1k_224.yaml"


def _keys(samples: Samples) -> list[tuple[str, str]]:
    """Key `class/name` and suffix of each image. The name has no dots, because a key ends at the first one."""
    keys: dict[str, str] = {}
    for i, name in enumerate(samples.names.tolist()):
        path = Path(os.fsdecode(name))
        key = path.with_name(path.stem.replace(".", "_")).as_posix()
        keys[f"{key}_{i}" if key in keys else key] = path.suffix.lower().replace("jpeg", "jpg")
    return [*keys.items()]


def _write(path: Path, samples: Samples, keys: list[tuple[str, str]], chosen: list[int]) -> None:
    with atomic_path(path) as temporary, tarfile.open(temporary, "w") as tar:
        for i in chosen:
            key, suffix = keys[i]
            try:
                image = samples.read(i)
            except OSError as error:
                raise UserError(f"cannot read {samples.name(i)}: {error.strerror or error}; replace it") from None
            for name, data in ((key + suffix, image), (f"{key}.cls", str(samples.labels[i]).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="the data set, as --data-path of classification/train.py")
    parser.add_argument("shards", type=Path, help="folder to create")
    parser.add_argument(
        "--dataset", default="folder", choices=("folder", "imagenet", "imagenet22K"), help="of the data"
    )
    parser.add_argument("--images-per-file", type=int, default=1000, help="most images of a tar file")
    args = parser.parse_args(argv)
    if args.images_per_file < 1:
        raise UserError(f"--images-per-file is {args.images_per_file}, expected at least 1")
    options = ["--cfg", str(_RECIPE), "--data-path", args.data, "--opts", "DATA.DATASET", args.dataset]
    splits = open_splits(get_config(parse_args(options)), print)
    try:
        args.shards.mkdir(parents=True)
    except OSError as error:
        remedy = "choose a new folder, or delete what an interrupted run left"
        raise UserError(f"cannot create {args.shards}: {error.strerror}; {remedy}") from None
    for split, samples in (("train", splits.train), ("val", splits.val)):
        rng, keys = np.random.default_rng(0), _keys(samples)
        by_class = np.lexsort((rng.random(len(samples)), samples.labels))  # shuffled within each class
        count = -(-len(samples) // args.images_per_file)
        for number in range(count):
            path = args.shards / f"{split}-{number:06}.tar"
            _write(path, samples, keys, rng.permutation(by_class[number::count]).tolist())
        written = read_tars(args.shards, find_shards(args.shards, split, ""), lambda _: None)
        print(f"{split}: {len(written)} images in {count} tar files")
    (args.shards / "classes.txt").write_text("\n".join(splits.class_names), encoding="utf-8")


if __name__ == "__main__":
    main()
