"""What a training step keeps for backward, in bytes, next to timm's ConvNeXt of the same size."""

import pytest
import timm
import torch
from torch import Tensor, nn

import internimage
from benchmarks.model import saved_bytes
from ops_dcnv3 import backends
from ops_dcnv3.onednn import onednn_works


@pytest.fixture(scope="module")
def convnext_bytes() -> int:
    return saved_bytes(timm.create_model("convnext_tiny").train(), batch=1)


@pytest.mark.skipif(backends.status()["cpu"] is not None, reason="measured with the compiled operator")
@pytest.mark.skipif(not onednn_works(), reason="the leaner layers need oneDNN")
@pytest.mark.parametrize(("checkpointing", "limit"), [(False, 1.4), (True, 0.8)])
def test_a_training_step_of_t_keeps_little_for_backward(checkpointing, limit, convnext_bytes):
    model = internimage.create_model("internimage_t_1k_224").train()
    model.set_grad_checkpointing(checkpointing)
    assert 0 < saved_bytes(model, batch=1) <= limit * convnext_bytes


class Square(nn.Module):
    """Two products: the first keeps the mean colour and its weight, the second the first's result, as both factors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        product = x.mean((2, 3)) * self.weight
        return product * product


def test_saved_bytes_counts_every_storage_once_and_no_parameters():
    batch, colours = 5, 3 * 4
    loss_keeps = batch * colours + batch * 8 + 4  # log-probabilities, targets (int64), total weight
    assert saved_bytes(Square(), batch) == 2 * batch * colours + loss_keeps
