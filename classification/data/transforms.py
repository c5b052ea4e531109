"""From a PIL image to a normalised tensor.

Training transforms are timm's (`create_transform`); the evaluation transform is the original project's: resize the
shorter side to IMG_SIZE and crop the centre, without the margin that timm and torchvision crop away by default.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from yacs.config import CfgNode

from internimage.errors import UserError

__all__ = ["build_transform"]

# Up to this size (CIFAR and the like), objects fill the image: no random resized crop.
_SMALL = 32


def build_transform(config: CfgNode, *, train: bool) -> Callable[[Image.Image], torch.Tensor]:
    """A function from a PIL RGB image to a float32 tensor (3, IMG_SIZE, IMG_SIZE), by `AUG`, `TEST` and `DATA`."""
    if train:
        return _training(config)
    size, interpolation = config.DATA.IMG_SIZE, _interpolation(config.DATA.INTERPOLATION)
    if config.TEST.CROP:
        to_size = [transforms.Resize(size, interpolation=interpolation), transforms.CenterCrop(size)]
    elif config.AUG.RANDOM_RESIZED_CROP:
        to_size = [transforms.RandomResizedCrop((size, size), interpolation=interpolation)]
    else:
        to_size = [transforms.Resize((size, size), interpolation=interpolation)]
    return transforms.Compose([*to_size, _ToNormalized(config.AUG.MEAN, config.AUG.STD)])


class _ToNormalized:
    """torchvision's ToTensor and Normalize with fewer copies: the same bits in half the time."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.div_(255).sub_(self.mean).div_(self.std)


def _interpolation(name: str) -> InterpolationMode:
    return InterpolationMode.BILINEAR if name == "random" else InterpolationMode(name)


def _training(config: CfgNode) -> transforms.Compose:
    aug, size = config.AUG, config.DATA.IMG_SIZE
    policy = None if aug.AUTO_AUGMENT in (None, "", "none") else aug.AUTO_AUGMENT
    try:
        composed = create_transform(
            input_size=size,
            is_training=True,
            color_jitter=aug.COLOR_JITTER if aug.COLOR_JITTER > 0 else None,
            auto_augment=policy,
            scale=tuple(aug.CROP_SCALE),
            re_prob=aug.REPROB,
            re_mode=aug.REMODE,
            re_count=aug.RECOUNT,
            interpolation=config.DATA.INTERPOLATION,
            mean=tuple(aug.MEAN),
            std=tuple(aug.STD),
        )
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"AUG.AUTO_AUGMENT is {policy!r}, which timm cannot read ({error}); "
            "expected none, rand-m9-mstd0.5-inc1, original, v0, augmix-m5-w4 or the like"
        ) from None
    _allow_zero_bits(composed)
    last = next(i for i, step in enumerate(composed.transforms) if isinstance(step, transforms.Normalize))
    composed.transforms[last - 1 : last + 1] = [_ToNormalized(aug.MEAN, aug.STD)]
    if size <= _SMALL:
        resize = transforms.Resize(size, interpolation=_interpolation(config.DATA.INTERPOLATION))
        composed.transforms[:1] = [resize, transforms.RandomCrop(size, padding=4)]
    return composed


def _posterize(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """Reduce the bits per channel; 0 bits is black."""
    return auto_augment.posterize(image, bits_to_keep) if bits_to_keep > 0 else Image.new(image.mode, image.size)


def _allow_zero_bits(composed: transforms.Compose) -> None:
    """Let timm's RandAugment posterize to 0 bits, which happens at magnitude 10 (9 plus noise).

    The result was a black image; Pillow 13 raises an error.
    """
    for transform in composed.transforms:
        policies = getattr(transform, "policy", [getattr(transform, "ops", [])])
        for operation in itertools.chain.from_iterable(policies):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize
