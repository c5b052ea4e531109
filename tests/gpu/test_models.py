"""Whole models on a GPU: the original project's outputs, and compiled models."""

import copy

import pytest
import torch
from gpu_cases import BACKEND, DEVICE, HALF, dtype_id

import internimage
from golden import fill, golden_model, relative_error
from internimage import FlashInternImage, InternImage

# Of the largest logit. Measured on the CPU: at most 6.3e-3 and 6.0e-2, by mini_flash_64; 1.5e-3 and 8.0e-3 by T.
HALF_LOGITS = {torch.float16: 1e-2, torch.bfloat16: 8e-2}
GOLDEN = ["tiny_224", "mini_l_64", "mini_h_96", "mini_flash_64"]


def golden_on_gpu(name):
    golden = golden_model(name)
    model = fill((FlashInternImage if "flash" in name else InternImage)(**golden.kwargs)).to(DEVICE)
    for level in model.levels:
        for block in level.blocks:
            block.dcn.backend = BACKEND
    return golden, model, golden.input.to(DEVICE)


def expected(golden, key):
    return torch.from_numpy(golden.outputs[key]).to(DEVICE)


@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_logits_and_features_equal_the_original_project(name):
    golden, model, x = golden_on_gpu(name)
    assert relative_error(model(x), expected(golden, "logits")) < 1e-4
    features = model.forward_intermediates(x, intermediates_only=True)
    for level, feature in enumerate(features if "feature0_shape" in golden.outputs else ()):
        assert list(feature.shape) == golden.outputs[f"feature{level}_shape"].tolist()
        assert relative_error(feature.reshape(-1)[:4096], expected(golden, f"feature{level}_head")) < 1e-4


@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_the_model_rewritten_for_inference_equals_the_original_project(name):
    golden, model, x = golden_on_gpu(name)
    assert relative_error(model.optimize_for_inference()(x), expected(golden, "logits")) < 1e-4


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "converted"])
@pytest.mark.parametrize("dtype", HALF, ids=dtype_id)
@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_half_precision_stays_close_to_the_original_project(name, dtype, autocast):
    golden, model, x = golden_on_gpu(name)
    if autocast:
        with torch.autocast(DEVICE.type, dtype=dtype):
            logits = model(x)
    else:
        logits = model.to(dtype)(x.to(dtype))
    assert relative_error(logits, expected(golden, "logits")) < HALF_LOGITS[dtype]


@pytest.fixture(scope="module")
def tiny():
    """InternImage-T with fewer blocks, which compiles in a part of the time."""
    torch.manual_seed(0)
    model = internimage.create_model("internimage_t_1k_224", depths=(1, 1, 2, 1), num_classes=10)
    return fill(model).to(DEVICE)


def images(seed):
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@torch.no_grad()
def test_t_compiles_to_one_graph_that_cuda_graphs_replay(tiny):
    compiled = torch.compile(tiny, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):  # eager, recorded, replayed with other images
        torch.compiler.cudagraph_mark_step_begin()
        assert relative_error(compiled(images(seed)), tiny(images(seed))) < 1e-4


def test_a_training_step_of_t_compiles_to_one_graph(tiny):
    model = copy.deepcopy(tiny).train()
    twin = copy.deepcopy(model)
    losses = []
    for module in (model, torch.compile(twin, fullgraph=True)):
        loss = module(images(0)).square().mean()
        loss.backward()
        losses.append(loss.detach())
    assert relative_error(losses[1], losses[0]) < 1e-4
    ours, theirs = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, twin))
    assert relative_error(theirs, ours) < 1e-3
