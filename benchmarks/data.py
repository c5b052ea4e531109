"""Reading images for classification: folder, zip and tar files, and plain torchvision ImageFolder beside them.

    python benchmarks/data.py --images 300 --repeats 9
    python benchmarks/data.py --steps 12 --workers 1            # also the share of a training step that waits

The data set is made of crops of scikit-image's photographs, 500 x 375 pixels and about 100 KB as is common in ImageNet.
Every repeat reads all images once in each way, in turn, in one process with one thread. All ways read in random order
and resize, crop and normalise as for evaluation, which is the same work each time. Results: docs/performance.md.
"""

import argparse
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import PIL
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from skimage import data
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from yacs.config import CfgNode

import internimage
from classification.config import get_config, parse_args
from classification.data import build_loaders, build_transform
from classification.data.loader import ImageLoader
from tools import make_shards

__all__ = ["main"]

CONFIG = Path(__file__).resolve().parents[1] / "classification/configs/internimage_t_1k_224.yaml"
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")
PLAIN = "torchvision ImageFolder"
WAYS = {
    "folder": ["--dataset", "folder"],
    "zip": ["--dataset", "folder", "--zip", "--cache-mode", "no"],
    "tar": ["--dataset", "tar"],
}


def make_data(root: Path, count: int) -> None:
    """Class folders, zip archives and, in `root/tar`, tar files of the same `count` training images."""
    rng = np.random.default_rng(0)
    for split, images in (("train", count), ("val", len(PHOTOGRAPHS))):
        for i in range(images):
            label = i % len(PHOTOGRAPHS)
            photograph = Image.fromarray(getattr(data, PHOTOGRAPHS[label])())
            scale = rng.uniform(0.5, 0.9) * min(photograph.width / 500, photograph.height / 375)
            left = rng.uniform(0, photograph.width - 500 * scale)
            top = rng.uniform(0, photograph.height - 375 * scale)
            folder = root / split / PHOTOGRAPHS[label]
            folder.mkdir(parents=True, exist_ok=True)
            box = (left, top, left + 500 * scale, top + 375 * scale)
            pixels = np.asarray(photograph.resize((500, 375), Image.Resampling.LANCZOS, box), dtype=np.float32)
            # Grain, for files of about 110 KB as ImageNet's.
            pixels += rng.normal(0, 6, pixels.shape[:2])[..., None]
            grained = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            grained.save(folder / f"{i:05}.jpg", quality=95)
        listed = ImageFolder(root / split)
        lines = [f"{Path(path).relative_to(root / split)}\t{label}\n" for path, label in listed.samples]
        (root / f"{split}_map.txt").write_text("".join(lines))
        with zipfile.ZipFile(root / f"{split}.zip", "w") as archive:
            for path, _ in listed.samples:
                archive.write(path, Path(path).relative_to(root / split))
    make_shards.main([str(root), str(root / "tar"), "--images", "100"])


def configure(root: Path, way: str, batch: int, workers: int) -> CfgNode:
    options = ["DATA.NUM_WORKERS", str(workers), "DATA.IMG_ON_MEMORY", "False", "AUG.MIXUP", "0", "AUG.CUTMIX", "0"]
    path = root / "tar" if way == "tar" else root
    arguments = ["--cfg", str(CONFIG), "--data-path", str(path), "--batch-size", str(batch), *WAYS[way]]
    return get_config(parse_args([*arguments, "--opts", *options]))


def loaders(root: Path, batch: int, workers: int) -> dict[str, DataLoader]:
    """Training loaders by the name that the table gives them; the plain one, the yardstick, comes first."""
    resize = transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC)
    normalize = transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    plain = transforms.Compose([resize, transforms.CenterCrop(224), transforms.ToTensor(), normalize])
    found: dict[str, DataLoader] = {
        PLAIN: DataLoader(
            ImageFolder(root / "train", plain),
            batch,
            shuffle=True,
            num_workers=workers,
            drop_last=True,
            persistent_workers=workers > 0,
        )
    }
    for way in WAYS:
        config = configure(root, way, batch, workers)
        found[way] = build_loaders(config).train
        found[way].dataset.transform = build_transform(config, train=False)
    return found


def epochs(loader: DataLoader) -> Iterator[torch.Tensor]:
    """Batches without end."""
    epoch = 0
    while True:
        if isinstance(loader, ImageLoader):
            loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def time_reading(found: dict[str, DataLoader], repeats: int) -> dict[str, list[float]]:
    """CPU seconds per image: of each way, in each repeat."""
    streams = {name: epochs(loader) for name, loader in found.items()}
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repeats + 1):
        for name, stream in streams.items():
            start, count = time.process_time(), 0
            for _ in range(len(found[name])):
                count += len(next(stream)[1])
            times[name].append((time.process_time() - start) / count)
    return {name: values[1:] for name, values in times.items()}  # the first repeat warms up


def time_waiting(
    found: dict[str, DataLoader], step: Callable[[torch.Tensor, torch.Tensor], None], steps: int
) -> dict[str, float]:
    """Share of the wall time of training steps that waits for the next batch."""
    streams = {name: epochs(loader) for name, loader in found.items()}
    waited, total = dict.fromkeys(found, 0.0), dict.fromkeys(found, 0.0)
    for number in range(steps + 2):
        for name, stream in streams.items():
            start = time.perf_counter()
            images, targets = next(stream)
            ready = time.perf_counter()
            step(images, targets)
            if number >= 2:  # the first steps start workers
                waited[name] += ready - start
                total[name] += time.perf_counter() - start
    return {name: waited[name] / total[name] for name in found}


def training_step(name: str) -> Callable[[torch.Tensor, torch.Tensor], None]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = internimage.create_model(name, num_classes=len(PHOTOGRAPHS)).to(device)
    optimizer = torch.optim.AdamW(model.parameters())

    def step(images: torch.Tensor, targets: torch.Tensor) -> None:
        loss = F.cross_entropy(model(images.to(device)), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def main(argv: list[str] | None = None) -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=0, help="training steps in which to measure the waiting")
    parser.add_argument("--model", default="internimage_t_1k_224", help="model of these steps")
    parser.add_argument("--workers", type=int, default=1, help="data workers in these steps")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), args.images)
        times = time_reading(loaders(Path(folder), args.batch, 0), args.repeats)
        waits = {}
        if args.steps:
            found = loaders(Path(folder), args.batch, args.workers)
            waits = time_waiting(found, training_step(args.model), args.steps)
    print("| reading | images/s per core | to torchvision | waiting |\n|---|--:|--:|--:|")
    for name, values in times.items():
        ratio = statistics.median(plain / own for plain, own in zip(times[PLAIN], values))
        share = f"{100 * waits[name]:.1f}%" if waits else ""
        print(f"| {name} | {1 / statistics.median(values):.1f} | {ratio:.3f} | {share} |")


if __name__ == "__main__":
    main()
