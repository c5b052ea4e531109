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
from timm.data.transforms import ResizeKeepRatio
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from yacs.config import CfgNode

from classification.config import channel_statistics, input_size
from internimage.errors import UserError

__all__ = ["build_transform"]

# Up to this size (CIFAR and the like), objects fill the image: no random resized crop.
_SMALL = 32


def build_transform(config: CfgNode, *, train: bool) -> Callable[[Image.Image], torch.Tensor]:
    """A function from a PIL RGB image to a float32 tensor (IN_CHANS, *IMG_SIZE), by `AUG`, `TEST` and `DATA`."""
    if train:
        return _training(config)
    size, interpolation = input_size(config), _interpolation(config.DATA.INTERPOLATION)
    if config.TEST.CROP:
        to_size = [_covering(config), transforms.CenterCrop(size)]
    elif config.AUG.RANDOM_RESIZED_CROP:
        to_size = [transforms.RandomResizedCrop(size, interpolation=interpolation)]
    else:
        to_size = [transforms.Resize(size, interpolation=interpolation)]
    return transforms.Compose([*to_size, *_grey(config), _ToNormalized(*channel_statistics(config))])


class _ToNormalized:
    """torchvision's ToTensor and Normalize with fewer copies: the same bits in half the time."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)
        pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.div_(255).sub_(self.mean).div_(self.std)


def _covering(config: CfgNode) -> Callable[[Image.Image], Image.Image]:
    """Resize an image, without distorting it, to the smallest size that covers `IMG_SIZE`."""
    (height, width), name = input_size(config), config.DATA.INTERPOLATION
    if height == width:
        return transforms.Resize(height, interpolation=_interpolation(name))
    return ResizeKeepRatio((height, width), interpolation=name)


def _grey(config: CfgNode) -> list[transforms.Grayscale]:
    return [transforms.Grayscale()] if config.MODEL.IN_CHANS == 1 else []


def _interpolation(name: str) -> InterpolationMode:
    return InterpolationMode.BILINEAR if name == "random" else InterpolationMode(name)


def _training(config: CfgNode) -> transforms.Compose:
    aug, size = config.AUG, input_size(config)
    mean, std = channel_statistics(config)
    policy = None if aug.AUTO_AUGMENT in (None, "", "none") else aug.AUTO_AUGMENT
    try:
        composed = create_transform(
            input_size=size,
            is_training=True,
            color_jitter=aug.COLOR_JITTER if aug.COLOR_JITTER > 0 else None,
            auto_augment=policy,
            scale=tuple(aug.CROP_SCALE),
            ratio=tuple(aug.CROP_RATIO),
            hflip=aug.HFLIP,
            vflip=aug.VFLIP,
            re_prob=aug.REPROB,
            re_mode=aug.REMODE,
            re_count=aug.RECOUNT,
            interpolation=config.DATA.INTERPOLATION,
            mean=mean,
            std=std,
        )
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"AUG.AUTO_AUGMENT is {policy!r}, which timm cannot read ({error}); "
            "expected none, rand-m9-mstd0.5-inc1, original, v0, augmix-m5-w4 or the like"
        ) from None
    _allow_zero_bits(composed)
    # Grey after the augmentation, whose policies fill with three values; in front of the conversion to a tensor.
    last = next(i for i, step in enumerate(composed.transforms) if isinstance(step, transforms.Normalize))
    composed.transforms[last - 1 : last + 1] = [*_grey(config), _ToNormalized(mean, std)]
    if max(size) <= _SMALL:
        composed.transforms[:1] = [_covering(config), transforms.RandomCrop(size, padding=4)]
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
