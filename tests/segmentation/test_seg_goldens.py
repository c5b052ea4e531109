"""UperNet and Mask2Former against stored outputs of the original project, weights loaded from the released layout."""

import numpy as np
import pytest
import torch
from golden_segmentors import GoldenSegmentor, golden_segmentor
from mmengine.config import ConfigDict
from torch import Tensor

from golden import filled
from internimage.checkpoint import load_exact, read_state_dict
from internimage.errors import CheckpointError

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["upernet_mini", "mask2former_mini"])
def golden(request) -> GoldenSegmentor:
    return golden_segmentor(request.param)


def check(golden: GoldenSegmentor, name: str, actual: Tensor) -> None:
    expected = torch.from_numpy(golden.outputs[name])
    assert actual.shape == expected.shape, name
    assert (actual.double() - expected.double()).abs().max() <= TOLERANCE, name


def thinned(maps: Tensor) -> Tensor:
    """The rows and columns that are stored of maps at the image's size."""
    return maps[..., 3::8, 5::8]


def test_the_parameter_count_is_the_original_one(golden):
    assert sum(parameter.numel() for parameter in golden.model.parameters()) == golden.spec["params"]


@torch.no_grad()
def test_features_and_logits(golden):
    model = golden.model
    features = model.extract_feat(golden.images)
    for level, feature in enumerate(features):
        check(golden, f"backbone_{level}", feature.contiguous().flatten()[:4096])
    if "head_logits" in golden.outputs:
        check(golden, "head_logits", model.decode_head(features))
        check(golden, "aux_logits", model.auxiliary_head(features)[..., ::2, ::2])
        return
    mask_features, memories = model.decode_head.pixel_decoder(features)
    check(golden, "mask_features", mask_features.contiguous().flatten()[:4096])
    for level, memory in enumerate(memories):
        check(golden, f"memory_{level}", memory.contiguous().flatten()[:4096])
    class_logits, mask_logits = model.decode_head(features, None)
    check(golden, "cls_logits", class_logits[-1])
    check(golden, "mask_logits", mask_logits[-1][:, :6])
    check(golden, "cls_logits_0", class_logits[0])
    check(golden, "mask_logits_0", mask_logits[0][:, :2])
    check(golden, "seg_map", model(golden.images, mode="tensor"))


@torch.no_grad()
def test_maps_of_a_padded_batch(golden):
    shape = {"img_shape": golden.images.shape[-2:], "ori_shape": golden.images.shape[-2:]}
    check(golden, "encode_decode", thinned(golden.model.encode_decode(golden.images, [shape, shape])))


@torch.no_grad()
def test_whole_image_inference_at_the_original_size(golden):
    (found,) = golden.model.predict(golden.first, [golden.sample()])
    check(golden, "whole_img0", thinned(found.seg_logits.data[None]))
    check(golden, "prob_img0", thinned(found.seg_logits.data[None].softmax(1)))
    differing = int((found.pred_sem_seg.data[0].numpy() != golden.outputs["argmax_img0"]).sum())
    ties = float(golden.outputs["argmax_margin_img0"][0]) < 1e-6
    assert differing <= (5 if ties else 0)


@torch.no_grad()
def test_a_mirrored_image_gives_mirrored_maps(golden):
    sample = golden.sample(flip=True, flip_direction="horizontal")
    (found,) = golden.model.predict(golden.first.flip(-1), [sample])
    check(golden, "prob_flipped_img0", thinned(found.seg_logits.data[None].softmax(1)))


@torch.no_grad()
def test_sliding_windows(golden):
    model, window = golden.model, golden.spec["inputs"]["slide"]
    model.test_cfg = ConfigDict(mode="slide", **window)
    try:
        # `pad_shape`, which mmseg's pipelines record, is the image's size and not the window's.
        meta = golden.meta | {"pad_shape": golden.first.shape[-2:]}
        check(golden, "slide_img0", thinned(model.inference(golden.first, [meta])))
    finally:
        model.test_cfg = ConfigDict(mode="whole")


def test_the_released_attention_names_are_converted(golden):
    keys = set(golden.spec["keys"])
    renamed = set(golden.model.state_dict())
    assert len(keys) == len(renamed)
    assert bool(keys - renamed) == ("mask_logits" in golden.outputs)
    assert not [key for key in renamed if ".attentions." in key]
    assert np.array_equal(
        sorted(golden.model.backbone.state_dict()), sorted(k[9:] for k in keys if k[:9] == "backbone.")
    )


def test_a_released_training_checkpoint_is_read_strictly(golden, tmp_path):
    state = filled(golden.spec["keys"])
    content = {"meta": {"CLASSES": ("wall",), "PALETTE": [[1, 2, 3]], "iter": 160000}, "optimizer": {}}
    torch.save(content | {"state_dict": state}, tmp_path / "released.pth")
    load_exact(golden.model, read_state_dict(tmp_path / "released.pth"))
    last = [key for key in state if key.startswith("decode_head.") and key.endswith(".weight")][-1]
    torch.save(content | {"state_dict": {key: state[key] for key in state if key != last}}, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match="missing"):
        load_exact(golden.model, read_state_dict(tmp_path / "cut.pth"))
