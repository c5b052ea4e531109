"""What timm's users and tools expect of a model holds for ours."""

import logging

import pytest
import timm
import torch
from yacs.config import CfgNode

import internimage
import internimage.timm
from internimage.errors import CheckpointError
from internimage.imagenet import in22k_to_1k
from internimage.variants import VARIANTS

NAME = "internimage_t_1k_224"
SMALL = {"channels": 16, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8)}
HEADS = {  # one of each kind: convolutional head, attention pooling, DCNv4
    NAME: {},
    "internimage_h_22kto1k_640": {"level2_post_norm_block_ids": (1,)},
    "flash_intern_image_s_1k_224": {},
}


def create(name=NAME, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **HEADS.get(name, {}), **kwargs}).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A small model in a released-style file that stands in for the download."""
    model = create()
    path = tmp_path / "released.pth"
    config = CfgNode({"MODEL": {"NAME": "intern_image"}})
    torch.save({"model": model.state_dict(), "config": config, "epoch": 299}, path)
    monkeypatch.setattr(internimage.timm, "checkpoint_path", lambda name: path)
    return model, path


def test_every_released_name_is_registered_with_a_complete_configuration():
    for name in VARIANTS:
        assert timm.is_model(name)
        cfg = timm.get_pretrained_cfg(name)
        size = int(name.rsplit("_", 1)[1].split("to")[-1])
        assert cfg.input_size == (3, size, size) and cfg.num_classes == VARIANTS[name]["num_classes"]
        assert cfg.crop_pct == 1.0 and cfg.interpolation == "bicubic" and cfg.mean == (0.485, 0.456, 0.406)
    without_weights = set(VARIANTS) - set(timm.list_models("*intern*image*", pretrained=True))
    assert without_weights == {"internimage_h_22kto1k_384"}


@pytest.mark.parametrize(
    "name",
    [NAME, "internimage_xl_22k_192to384", "internimage_h_22ktoinat18_384", "flash_intern_image_l_22kto1k_384"],
)
def test_timm_builds_what_internimage_builds(name):
    with torch.device("meta"):
        ours, timms = (create(name, depths=(1, 1, 1, 1)) for create in (internimage.create_model, timm.create_model))
    assert type(ours) is type(timms)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, timms)]
    assert shapes[0] == shapes[1]
    heads = timms.pretrained_cfg["classifier"]
    for layer in [timms.pretrained_cfg["first_conv"], *([heads] if isinstance(heads, str) else heads)]:
        assert f"{layer}.weight" in shapes[1]


@pytest.mark.parametrize("name", HEADS)
def test_forward_is_features_then_head(name, images):
    model = create(name, num_classes=7)
    features = model.forward_features(images)
    assert features.shape[:2] == (2, model.num_features)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model(images))
    assert model(images).shape == (2, 7)


@pytest.mark.parametrize("name", HEADS)
def test_the_classifier_can_be_found_replaced_and_removed(name, images):
    model = create(name)
    assert model.get_classifier() is model.head and model.head.out_features == 1000
    model.reset_classifier(5)
    assert model(images).shape == (2, 5) and model.num_classes == 5
    model.reset_classifier(0)
    pooled = model(images)
    assert pooled.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(create(name, num_classes=0)(images).shape, pooled.shape)


@pytest.mark.parametrize("name", HEADS)
def test_features_only_gives_maps_at_four_strides_without_a_head(name, images):
    model = create(name, features_only=True)
    maps = model(images)
    assert [tuple(m.shape) for m in maps] == [(2, 16, 16, 16), (2, 32, 8, 8), (2, 64, 4, 4), (2, 128, 2, 2)]
    assert model.feature_info.channels() == [16, 32, 64, 128] and model.feature_info.reduction() == [4, 8, 16, 32]
    assert not any("head" in key for key in model.state_dict())
    assert isinstance(maps, list)
    assert [m.shape[1] for m in create(name, features_only=True, out_indices=(1, 3))(images)] == [32, 128]


def test_forward_intermediates_agrees_with_features_only_and_forward_features(images):
    model = create()
    features, maps = model.forward_intermediates(images)
    torch.testing.assert_close(features, model.forward_features(images))
    (last,) = model.forward_intermediates(images, indices=[3], intermediates_only=True)
    torch.testing.assert_close(last, maps[3])
    early = model.forward_intermediates(images, indices=2, output_fmt="NHWC", intermediates_only=True)
    torch.testing.assert_close(early[0].permute(0, 3, 1, 2), maps[2])


def test_gradient_checkpointing_is_timms_switch_and_changes_no_gradient(images):
    gradients = []
    for enable in (False, True):
        model = create()
        model.set_grad_checkpointing(enable)
        model(images.requires_grad_()).sum().backward()
        gradients.append(model.patch_embed.conv1.weight.grad)
    torch.testing.assert_close(*gradients)


def test_the_data_configuration_and_optimizer_factories_accept_the_model():
    model = create()
    data = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data)
    assert data["crop_pct"] == 1.0 and transform is not None
    from timm.optim import create_optimizer_v2

    assert create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)


def test_pretrained_weights_come_through_the_zoo(released, images):
    source, _ = released
    model = create(pretrained=True)
    torch.testing.assert_close(model(images), source(images))
    assert "state_dict" not in model.pretrained_cfg and model.pretrained_cfg["url"].endswith(f"/{NAME}.pth")


def test_pretrained_weights_adapt_to_other_classes_channels_and_features(released, images):
    source, _ = released
    model = create(pretrained=True, num_classes=4, in_chans=1)
    kernel = source.patch_embed.conv1.weight
    torch.testing.assert_close(model.patch_embed.conv1.weight, kernel.sum(1, keepdim=True))
    torch.testing.assert_close(model.conv_head[0].weight, source.conv_head[0].weight)
    assert model.head.out_features == 4
    maps = create(pretrained=True, features_only=True)(images)
    torch.testing.assert_close(maps[-1], source.forward_features(images))


def test_a_22k_file_starts_a_1k_model_from_the_mapped_rows(tmp_path, caplog):
    source = create("internimage_l_22k_192to384")
    torch.save({"model": source.state_dict()}, tmp_path / "x.pth")
    overlay = {"file": str(tmp_path / "x.pth")}
    with caplog.at_level(logging.INFO):
        model = create("internimage_l_22k_192to384", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=1000)
    torch.testing.assert_close(model.head.weight, source.head.weight[in22k_to_1k()])
    assert "rows of the same classes" in caplog.text


def test_a_file_of_another_model_or_a_broken_one_is_an_error(released, tmp_path):
    _, path = released
    with pytest.raises(RuntimeError, match=r"(?i)missing key"):
        create(pretrained=True, depths=(1, 1, 3, 1), pretrained_cfg_overlay={"file": str(path)})
    (tmp_path / "x.pth").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        create(pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "x.pth")})


def test_timms_own_loaders_read_released_files_and_the_hugging_face_layout(released, tmp_path, images):
    source, path = released
    torch.testing.assert_close(create(checkpoint_path=str(path))(images), source(images))
    hugging_face = {f"model.{key}": value for key, value in source.state_dict().items()}
    torch.save(hugging_face, tmp_path / "hf.pth")
    torch.testing.assert_close(create(checkpoint_path=str(tmp_path / "hf.pth"))(images), source(images))


def test_timms_averaging_copies_a_model_and_still_converts_layouts(images):
    from timm.utils import ModelEmaV2

    model = create()
    average = ModelEmaV2(model)
    average.update(model)
    torch.testing.assert_close(average.module(images), model(images))
    average.module.load_state_dict({f"model.{key}": value for key, value in model.state_dict().items()})
