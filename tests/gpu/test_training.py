"""Training on a GPU in half precision, and by DistributedDataParallel with NCCL."""

import copy
import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from gpu_cases import DEVICE, HALF, dtype_id
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from internimage import InternImage
from ops_dcnv3 import DCNv3

SHEETS = Path(__file__).parents[2] / "classification" / "demo" / "fashion_mnist"
TILE = 28  # pixels a side
BATCH = 64


@functools.cache
def garments(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The embedded Fashion-MNIST images `(N, 1, 28, 28)`, about -1 to 1, and their classes."""
    images, labels = [], []
    for label, path in enumerate(sorted((SHEETS / split).glob("*.png"))):
        sheet = torch.from_numpy(np.array(Image.open(path)))
        tiles = sheet.unfold(0, TILE, TILE).unfold(1, TILE, TILE).reshape(-1, 1, TILE, TILE)
        images.append(tiles)
        labels += [label] * len(tiles)
    return torch.cat(images).to(DEVICE).float() / 127.5 - 1, torch.tensor(labels).to(DEVICE)


def small_model(**overrides) -> InternImage:
    torch.manual_seed(0)
    sizes = {"channels": 16, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8), "num_classes": 10, "in_chans": 1}
    return InternImage(**{**sizes, **overrides}).to(DEVICE)


@pytest.mark.parametrize("dtype", HALF, ids=dtype_id)
def test_two_hundred_steps_on_garments_stay_finite_and_learn(dtype):
    images, labels = garments("train")
    assert len(images) == 12000 and labels.unique().numel() == 10
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=dtype == torch.float16)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    losses = []
    for step in range(200):
        batch = order[step * BATCH % len(order) :][:BATCH]
        with torch.autocast(DEVICE.type, dtype=dtype):
            loss = F.cross_entropy(model(images[batch]).float(), labels[batch])
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
    losses = torch.stack(losses).tolist()
    assert all(math.isfinite(loss) for loss in losses)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    if scaler.is_enabled():
        # A scale that fell below its start would mean gradients that overflowed.
        assert scaler.get_scale() >= 2.0**16
    with torch.no_grad(), torch.autocast(DEVICE.type, dtype=dtype):
        unseen, classes = garments("val")
        accuracy = (model.eval()(unseen).argmax(1) == classes).float().mean().item()
    assert accuracy > 0.6


def test_a_gradient_that_overflows_float16_skips_the_step_and_halves_the_scale():
    layer = DCNv3(8, group=2).to(DEVICE)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**40)
    with torch.autocast(DEVICE.type, dtype=torch.float16):
        loss = layer(torch.randn(1, 5, 5, 8, device=DEVICE)).float().sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**39
    assert all(map(torch.equal, before, layer.parameters()))


@pytest.mark.parametrize("dtype", HALF, ids=dtype_id)
def test_checkpointed_blocks_train_under_autocast_as_plain_ones_do(dtype):
    images, labels = garments("train")
    batch = torch.arange(0, len(images), 750, device=DEVICE)
    grads = []
    for enable in (False, True):
        model = small_model()
        model.set_grad_checkpointing(enable)
        with torch.autocast(DEVICE.type, dtype=dtype):
            loss = F.cross_entropy(model(images[batch]).float(), labels[batch])
        loss.backward()
        grads.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert F.cosine_similarity(*grads, dim=0) > 0.9999


@pytest.fixture
def one_process_group(tmp_path):
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_training_with_nccl_has_the_gradients_of_plain_training(one_process_group):
    images, labels = garments("train")
    batch = torch.arange(0, len(images), 750, device=DEVICE)
    plain = small_model()
    replica = DistributedDataParallel(copy.deepcopy(plain))
    for model in (plain, replica):
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
    for (name, ours), theirs in zip(plain.named_parameters(), replica.module.parameters(), strict=True):
        scale = ours.grad.abs().max().clamp(min=1e-6)
        assert (theirs.grad - ours.grad).abs().max() / scale < 1e-3, name
