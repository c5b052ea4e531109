"""The classes of ImageNet: their names, and the map from the 1000 of ImageNet-1K to the 21841 of ImageNet-22K.

Both class lists are timm's synset lists, in the order of the released heads (22K as in the fall 2011 archive, 1K as in
ILSVRC 2012).
"""

import functools

import torch
from timm.data import ImageNetInfo

__all__ = ["class_names", "in22k_to_1k"]

# 22K does not have the synset of 1K class 850 (teddy bear). The original project uses the row of class 849 (teapot) in
# fine-tuning and in 22K evaluation.
_SUBSTITUTES = {850: 11136}


@functools.cache
def _rows() -> tuple[int, ...]:
    row_of = {synset: row for row, synset in enumerate(ImageNetInfo("imagenet22k").label_names())}
    synsets = ImageNetInfo("imagenet1k").label_names()
    return tuple(_SUBSTITUTES[i] if i in _SUBSTITUTES else row_of[synset] for i, synset in enumerate(synsets))


def in22k_to_1k() -> torch.Tensor:
    """Return the ImageNet-22K row of every ImageNet-1K class, `(1000,)` int64.

    `head_22k.weight[in22k_to_1k()]` is a 1K head; `logits_22k[:, in22k_to_1k()]` are 1K logits.
    """
    return torch.tensor(_rows(), dtype=torch.int64)


def class_names(num_classes: int) -> list[str] | None:
    """Names of the classes of ImageNet-1K (1000) or ImageNet-22K (21841); None for another number."""
    subset = {1000: "imagenet1k", 21841: "imagenet22k"}.get(num_classes)
    info = ImageNetInfo(subset) if subset else None
    return [info.index_to_description(index) for index in range(num_classes)] if info else None
