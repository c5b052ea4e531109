"""CBInternImage against its definition, and CBDINO's training on both of its backbones."""

import detection.models  # noqa: F401 - isort: skip - before mmdet
import pytest
import torch
import torch.nn.functional as F
from golden_detectors import dino, golden_detector
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from golden import fill, image
from internimage import UserError
from internimage.composite import CBInternImage

TINY = {"channels": 16, "depths": [1, 1, 2, 1], "groups": [1, 2, 4, 8], "layer_scale": 1.0}


@torch.no_grad()
def test_the_second_backbone_is_fed_by_all_deeper_levels_of_the_first():
    model = fill(CBInternImage(**TINY, out_indices=[[0, 1, 2, 3], [0, 1, 2, 3]]))
    first, second = model(image(2, 3, 64, 96, seed=1))
    leader, follower = model.cb_modules
    expected = leader(image(2, 3, 64, 96, seed=1))
    assert all(torch.equal(got, wanted) for got, wanted in zip(first, expected))
    x = leader.patch_embed(image(2, 3, 64, 96, seed=1))
    for level in range(4):
        height, width = 16 >> level, 24 >> level
        feed = first[level].clone()
        for deeper in range(level + 1, 4):
            linear = model.get_submodule(f"cb_linears.{level}.{deeper - level}")
            feed += F.interpolate(linear(first[deeper]), size=(height, width), mode="nearest")
        gamma = getattr(follower, f"gamma{level}").half().float()
        feature = follower.levels[level](x + gamma * feed.permute(0, 2, 3, 1))
        x = follower.levels[level].downsample(feature)
        torch.testing.assert_close(second[level], feature.permute(0, 3, 1, 2), rtol=0, atol=1e-5)


@torch.no_grad()
def test_gammas_are_rounded_to_half_precision():
    model = fill(CBInternImage(**TINY))
    outputs = model(image(1, 3, 32, 32, seed=2))[1]
    for level in range(4):
        gamma = getattr(model.cb_modules[1], f"gamma{level}")
        gamma.copy_(gamma.half())
    assert all(torch.equal(a, b) for a, b in zip(outputs, model(image(1, 3, 32, 32, seed=2))[1]))


def test_the_two_give_equally_many_maps():
    first, second = CBInternImage(**TINY)(torch.zeros(1, 3, 32, 64))
    assert [f.shape for f in first] == [f.shape for f in second] == [(1, 32, 4, 8), (1, 64, 2, 4), (1, 128, 1, 2)]


def test_keys_are_the_released_ones():
    keys = set(CBInternImage(**TINY).state_dict())
    assert "cb_modules.0.patch_embed.conv1.weight" in keys and "cb_modules.1.patch_embed.conv1.weight" not in keys
    own = {key for key in keys if key.startswith("cb_linears.") or ".gamma" in key and ".levels." not in key}
    pairs = [(level, step) for level in range(4) for step in range(1, 4 - level)]
    linears = {f"cb_linears.{level}.{step}.{kind}" for level, step in pairs for kind in ("weight", "bias")}
    assert own == linears | {f"cb_modules.1.gamma{level}" for level in range(4)}


def test_sizes_that_are_no_multiple_of_32_are_an_error():
    with pytest.raises(UserError, match="multiples of 32, got \\(48, 64\\)"):
        CBInternImage(**TINY)(torch.zeros(1, 3, 48, 64))


# DINO


def small_cbdino() -> torch.nn.Module:
    config = dino(golden_detector("dino_mini").spec["model"])
    backbone = {"type": "CBInternImage", **TINY, "out_indices": [[0, 1, 2, 3], [1, 2, 3]]}
    config |= {"type": "CBDINO", "backbone": backbone, "num_queries": 20}
    config["neck"] = {**config["neck"], "in_channels": [32, 64, 128]}
    config["bbox_head"] = {**config["bbox_head"], "type": "CBDINOHead"}
    return fill(MODELS.build(ConfigDict(config)))


def samples_with_boxes() -> list:
    samples = golden_detector("dino_mini").samples
    boxes = torch.tensor([[10.0, 10.0, 60.0, 50.0], [30.0, 20.0, 90.0, 70.0]])
    for sample in samples:
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([3, 7]))
    return samples


def test_cbdino_trains_on_both_backbones_and_weighs_the_first_by_half():
    model = small_cbdino().train()
    images = torch.zeros(2, 3, 96, 128).normal_(generator=torch.Generator().manual_seed(5))
    torch.manual_seed(0)
    losses = model.loss(images, samples_with_boxes())
    model.bbox_head.cb_first_weight = 1.0
    torch.manual_seed(0)
    unweighted = model.loss(images, samples_with_boxes())
    assert len(losses) == 2 * 15  # matching, denoising and encoder losses: 2 layers x 6 + 3
    for name, value in losses.items():
        torch.testing.assert_close(value, unweighted[name] * (0.5 if name.endswith("_cb0") else 1.0))
    sum(losses.values()).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []


@torch.no_grad()
def test_cbdino_infers_with_the_second_backbone():
    model = small_cbdino()
    images = golden_detector("dino_mini").images
    maps = model.extract_feat(images)
    assert all(torch.equal(a, b) for a, b in zip(maps, model.neck(model.backbone(images)[1])))
    found = model.predict(images, samples_with_boxes())
    assert [len(sample.pred_instances.bboxes) for sample in found] == [100, 100]


def test_a_released_composite_neck_in_a_list_is_converted():
    model = small_cbdino()
    state = {key.replace("neck.", "neck.0."): value for key, value in model.state_dict().items()}
    state = {key.replace("memory_trans_fc", "bbox_head.transformer.enc_output"): v for key, v in state.items()}
    model.load_state_dict(state)


@torch.no_grad()
def test_boxes_start_from_references_at_least_a_thousandth_from_the_edges():
    head = small_cbdino().bbox_head
    states = torch.randn(1, 1, 5, 256, generator=torch.Generator().manual_seed(6))
    reference = torch.tensor([0.0, 1e-4, 0.3, 0.99995, 1.0])[None, :, None].expand(1, 5, 4)
    boxes = head(states, [reference])[1]
    above, below = reference.clamp(min=1e-3), (1 - reference).clamp(min=1e-3)
    expected = (head.reg_branches[0](states[0]) + (above / below).log()).sigmoid()
    torch.testing.assert_close(boxes[0], expected, rtol=0, atol=1e-5)
