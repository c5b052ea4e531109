"""ImageNet-22K and ImageNet-1K: which of the 21841 classes is which of the 1000.

Both class lists are the synset lists that timm ships, in the order of the released heads (22K as in the
fall 2011 archive, 1K as in ILSVRC 2012).
"""

import functools

import torch
from timm.data import ImageNetInfo

__all__ = ["in22k_to_1k"]

# 22K lacks the synset of 1K class 850 (teddy bear). The original project gives that class the row of its
# neighbour 849 (teapot); kept, since the released fine-tuning and 22K evaluation did the same.
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
