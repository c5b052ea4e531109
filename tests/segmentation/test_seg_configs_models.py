"""Small copies of the configurations' segmentors: a training step, inference, ignored label maps."""

import segmentation.models  # noqa: F401 - isort: skip - before mmseg
import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

from mm_recipes import SEGMENTATION

register_all_modules()


def small(name, num_classes=5):
    """A configuration's model with a mini backbone and a short transformer."""
    model = Config(copy.deepcopy(SEGMENTATION.config(name))).model
    depths = [1, 1, 3, 1] if model.backbone.get("level2_post_norm") else [1, 1, 1, 1]
    model.backbone.update(channels=16, depths=depths, groups=[1, 2, 4, 8], init_cfg=None, drop_path_rate=0.1)
    if "level2_post_norm_block_ids" in model.backbone:
        model.backbone.level2_post_norm_block_ids = [1, 2]
    head = model.decode_head
    head.update(in_channels=[16, 32, 64, 128], num_classes=num_classes)
    if "pixel_decoder" in head:
        head.num_queries = 10
        head.train_cfg.num_points = 50
        head.loss_cls.class_weight = [1.0] * num_classes + [0.1]
        head.transformer_decoder.num_layers = head.pixel_decoder.encoder.num_layers = 1
        if head.feat_channels > 256:
            pytest.fail("use a 256-wide head")
    else:
        head.channels = 32
    if model.get("auxiliary_head"):
        model.auxiliary_head.update(in_channels=64, channels=16, num_classes=num_classes)
    model.data_preprocessor.size = (64, 64)
    return model


def batch(*label_maps):
    samples = []
    for labels in label_maps:
        meta = {"img_shape": labels.shape, "ori_shape": labels.shape, "pad_shape": labels.shape}
        samples.append(SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels[None])))
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *s.shape), generator=generator, dtype=torch.uint8) for s in label_maps]
    return {"inputs": images, "data_samples": samples}


SMALL = [
    "ade20k/upernet_internimage_t_512_160k_ade20k.py",
    "cityscapes/segformer_internimage_l_512x1024_160k_mapillary2cityscapes.py",
    "nyu_depth_v2/mask2former_internimage_h_480_40k_nyu.py",
    "ade20k/upernet_internimage_nano_512_4k_ade20k.py",
    "ade20k/upernet_flash_internimage_s_512_160k_ade20k.py",
    "ade20k/mask2former_flash_internimage_s_640_160k_ade20k_ss_nsmx.py",
]


@pytest.mark.parametrize("name", SMALL)
def test_a_small_copy_takes_a_training_step_and_labels_images_of_any_size(name):
    torch.manual_seed(0)
    init_default_scope("mmseg")
    model = revert_sync_batchnorm(MODELS.build(small(name)))
    model.init_weights()
    wrapper = build_optim_wrapper(model, Config({"w": {"optimizer": {"type": "AdamW", "lr": 1e-3}}}).w)
    first = torch.randint(0, 5, (64, 64))
    first[:8] = 255
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    model.train()
    losses = model.train_step(batch(first, torch.randint(0, 5, (50, 61))), wrapper)
    assert all(torch.isfinite(value).all() for value in losses.values())
    moved = {key.split(".")[0] for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {child for child, module in model.named_children() if list(module.parameters())}
    model.eval()
    with torch.no_grad():
        (found,) = model.test_step(batch(torch.zeros(45, 83, dtype=torch.long)))
    assert found.pred_sem_seg.data.shape == (1, 45, 83)
    assert found.seg_logits.data.shape == (5, 45, 83) and found.pred_sem_seg.data.max() < 5


@pytest.mark.parametrize("name", SMALL[:3])
def test_label_maps_that_are_ignored_everywhere_give_finite_losses_and_gradients(name):
    torch.manual_seed(0)
    init_default_scope("mmseg")
    model = revert_sync_batchnorm(MODELS.build(small(name))).train()
    ignored = torch.full((64, 64), 255)
    losses, _ = model.parse_losses(model(**model.data_preprocessor(batch(ignored, ignored), True), mode="loss"))
    losses.backward()
    assert torch.isfinite(losses)
    # Every parameter takes part, or data-parallel training would wait for it.
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_nsmx_attends_without_softmax():
    from mmcv.ops import MultiScaleDeformableAttention

    from segmentation.models import UnnormalizedDeformableAttention

    torch.manual_seed(0)
    options = {"embed_dims": 32, "num_heads": 4, "num_levels": 2, "dropout": 0.0, "batch_first": True}
    ordinary, ours = MultiScaleDeformableAttention(**options), UnnormalizedDeformableAttention(**options)
    for parameter in ordinary.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.zeros_(ordinary.attention_weights.weight)
    ours.load_state_dict(ordinary.state_dict())
    # The same weights for all queries: give ours what softmax makes of the other's biases.
    ours.attention_weights.bias.data = ordinary.attention_weights.bias.data.view(4, 8).softmax(-1).flatten()
    sizes = torch.tensor([[4, 5], [2, 3]])
    inputs = {
        "query": torch.randn(2, 26, 32),
        "query_pos": torch.randn(2, 26, 32),
        "reference_points": torch.rand(2, 26, 2, 2),
        "key_padding_mask": torch.rand(2, 26) < 0.1,
        "spatial_shapes": sizes,
        "level_start_index": torch.tensor([0, 20]),
    }
    torch.testing.assert_close(ours(**inputs), ordinary(**inputs))
    with torch.no_grad():
        ours.attention_weights.bias *= 2
        torch.testing.assert_close(
            ours(**inputs) - inputs["query"] - ours.output_proj.bias,
            2 * (ordinary(**inputs) - inputs["query"] - ours.output_proj.bias),
        )
