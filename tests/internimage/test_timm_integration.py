"""What timm's users and tools expect of a model holds for ours."""

import json
import logging
import re
import sys
from pathlib import Path

import pytest
import timm
import timm.optim
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models.feature_extraction import create_feature_extractor
from yacs.config import CfgNode

import internimage
import internimage.timm
from internimage.errors import CheckpointError
from internimage.imagenet import in22k_to_1k
from internimage.layers import Block, StemLayer
from internimage.optim import param_groups
from internimage.variants import VARIANTS

NAME = "internimage_t_1k_224"
SMALL = {"channels": 16, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8)}
PAGE = Path(__file__).parents[2] / "docs" / "timm.md"
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
    assert timm.list_models(module="internimage") == timm.list_models("*intern*image*")
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
def test_the_configuration_knows_the_size_of_the_last_map(name):
    model = create(name, device="meta", dtype=torch.float16)
    images = torch.empty(1, *model.pretrained_cfg["input_size"], device="meta", dtype=torch.float16)
    features = model.forward_features(images)
    assert features.shape[2:] == model.pretrained_cfg["pool_size"] and features.dtype == torch.float16
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


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
def test_without_pooling_and_classifier_the_result_is_a_map(name, images):
    model = create(name)
    model.requires_grad_(False).reset_classifier(0, "")
    unpooled = model(images)
    channels, size = (1024, 4) if model.use_clip_projector else (model.head_hidden_size, 2)
    assert unpooled.shape == (2, channels, size, size)
    other = create(name, num_classes=0, global_pool="")
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(images), unpooled)
    model.to(torch.float64).reset_classifier(3)  # a classifier brings the pooling back
    assert model(images.double()).shape == (2, 3) and not model.head.training
    with pytest.raises(ValueError, match="global_pool of this model is '(avg|map)', or '' for no pooling; got 'max'"):
        model.reset_classifier(3, "max")
    with pytest.raises(ValueError, match="a classifier needs pooled features"):
        create(name, global_pool="")


def test_the_inaturalist_model_without_classifiers_takes_images_alone(images):
    model = create("internimage_h_22ktoinat18_384", level2_post_norm_block_ids=(1,))
    model.reset_classifier(0)
    assert model(images).shape == (2, model.head_hidden_size)
    model.reset_classifier(4)
    assert model(images, torch.zeros(2, 4), torch.zeros(2, 3)).shape == (2, 4)


@pytest.mark.parametrize("name", HEADS)
def test_timms_layer_decay_is_that_of_our_own_parameter_groups(name):
    model = create(name, depths=(2, 1, 2, 1))
    timms = timm.optim.param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    ours = param_groups(model, base_lr=1.0, weight_decay=0.05, layer_decay=0.5)
    scales = [{p: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]} for groups in (timms, ours)]
    assert scales[0] == scales[1] and len(scales[0]) == len(list(model.parameters()))
    assert len(timms) == 12 and min(group["lr_scale"] for group in timms) == 0.5**5
    coarse = timm.models.group_parameters(model, model.group_matcher(coarse=True))
    stem = {name for name, _ in model.named_parameters() if name.startswith("patch_embed")}
    assert len(coarse) == 6 and set(coarse[0]) == stem


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("indices", [(0, -3), 1])
def test_pruned_models_have_only_what_the_maps_need(name, indices, images):
    model = create(name)
    maps = model.forward_intermediates(images, indices=indices, intermediates_only=True)
    taken = model.prune_intermediate_layers(indices)
    assert taken == ([3] if indices == 1 else [0, 1])
    results = model.forward_intermediates(images, indices=taken, intermediates_only=True)
    torch.testing.assert_close(results, maps)
    torch.testing.assert_close(model(images), maps[-1])
    sum(result.sum() for result in results).backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]
    model.reset_classifier(5)
    assert model(images).shape == (2, 5)


@pytest.mark.parametrize("indices", [(4,), (), 0, 5])
def test_levels_that_do_not_exist_are_an_error(indices):
    with pytest.raises(ValueError, match="indices must be levels 0 to 3, or a number of last levels; got"):
        create().prune_intermediate_layers(indices)


@pytest.mark.parametrize("name", HEADS)
def test_features_only_gives_maps_at_four_strides_without_a_head(name, images):
    model = create(name, features_only=True)
    maps = model(images)
    assert [tuple(m.shape) for m in maps] == [(2, 16, 16, 16), (2, 32, 8, 8), (2, 64, 4, 4), (2, 128, 2, 2)]
    assert model.feature_info.channels() == [16, 32, 64, 128] and model.feature_info.reduction() == [4, 8, 16, 32]
    assert not any("head" in key for key in model.state_dict())
    assert isinstance(maps, list)
    assert [m.shape[1] for m in create(name, features_only=True, out_indices=(1, 3))(images)] == [32, 128]
    pruned = create(name, features_only=True, out_indices=(0, -3))
    torch.testing.assert_close(pruned(images), maps[:2])
    assert pruned.feature_info.channels() == [16, 32] and len(pruned.model.levels) == 2
    with pytest.raises(ValueError, match="feature_cls of .* can only be 'getter'; got 'hook'"):
        create(name, features_only=True, feature_cls="hook")


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
    assert timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)


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
    (first,) = create(pretrained=True, features_only=True, out_indices=(0,))(images)
    torch.testing.assert_close(first, maps[0])


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


@pytest.mark.parametrize("name", HEADS)
def test_feature_extraction_by_fx_gives_the_maps_and_gradients_of_the_model(name, images):
    model = create(name)
    node = "levels.2.blocks.1"
    expected = []
    model.levels[2].blocks[1].register_forward_hook(lambda module, inputs, output: expected.append(output))
    logits = model(images)
    ours = create_feature_extractor(model, [node, "head"], tracer_kwargs={"leaf_modules": [StemLayer, Block]})(images)
    for found in (timm.models.create_feature_extractor(model, [node, "head"])(images), ours):
        torch.testing.assert_close(found[node], expected[0])
        torch.testing.assert_close(found["head"], logits)
    ours["head"].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap of attention, in PyTorch
def test_transforms_of_torch_func_agree_with_the_model(name, images):
    model = create(name, num_classes=3)
    parameters = dict(model.named_parameters())
    for key in parameters:  # away from whole coordinates, where kernels and standard operators differ in the slope
        if "offset" in key and key.endswith("bias"):
            torch.nn.init.uniform_(parameters[key], 0.1, 0.4)

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],))[0].square().sum()

    torch.testing.assert_close(torch.func.vmap(lambda image: model(image[None])[0])(images), model(images))
    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images)
    for index, image in enumerate(images):
        model.zero_grad()
        loss(parameters, image).backward()
        for key, parameter in parameters.items():
            torch.testing.assert_close(found[key][index], parameter.grad, rtol=1e-4, atol=1e-5)
    step = 1e-2 * torch.ones_like(images)
    with sdpa_kernel(SDPBackend.MATH):
        tangent = torch.func.jvp(model.double(), (images.double(),), (step.double(),))[1]
    slope = (model(images.double() + 1e-3 * step) - model(images.double() - 1e-3 * step)) / 2e-3
    torch.testing.assert_close(tangent, slope, rtol=1e-3, atol=1e-6)


def block_with(text):
    """The Python block of docs/timm.md that contains `text`."""
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL) if text in b)
    return block


def saved(model, folder, **kwargs):
    timm.models.save_for_hf(model, folder, safe_serialization=True, **kwargs)
    return f"local-dir:{folder}"


@pytest.mark.parametrize("name", HEADS)
def test_folders_of_timms_hub_code_load_back(name, tmp_path, images):
    model = create(name, num_classes=7, in_chans=1, drop_rate=0.1)
    source = saved(model, tmp_path)
    torch.testing.assert_close(timm.create_model(source, pretrained=True).eval()(images[:, :1]), model(images[:, :1]))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == name and config["model_args"]["global_pool"] == model.global_pool
    other = timm.create_model(source, pretrained=True, num_classes=3, in_chans=3)
    assert other(images).shape == (2, 3)
    torch.testing.assert_close(other.levels.state_dict(), model.levels.state_dict())
    maps = timm.create_model(source, pretrained=True, features_only=True, out_indices=(0,))(images[:, :1])
    assert [tuple(m.shape) for m in maps] == [(2, 16, 16, 16)]


def test_a_folder_without_classifier_starts_a_classifier(tmp_path, images):
    model = create()
    model.reset_classifier(0, "")
    source = saved(model, tmp_path)
    torch.testing.assert_close(timm.create_model(source, pretrained=True).eval()(images), model(images))
    classifier = timm.create_model(source, pretrained=True, num_classes=5, global_pool="avg").eval()
    features = model(images).mean((2, 3))
    torch.testing.assert_close(classifier.forward_head(classifier.forward_features(images), True), features)


def test_folders_without_the_class_count_among_the_arguments_load_in_transformers_too(tmp_path, images):
    model = create(num_classes=7)
    source = saved(model, tmp_path)
    exec(block_with('del config["model_args"]["num_classes"]'), {"folder": tmp_path})
    assert "num_classes" not in json.loads((tmp_path / "config.json").read_text())["model_args"]
    torch.testing.assert_close(timm.create_model(source, pretrained=True).eval()(images), model(images))
    transformers = pytest.importorskip("transformers")
    ported = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(ported(images).logits, model(images))


def test_scripts_of_timm_know_the_names(tmp_path, monkeypatch, capsys):
    (tmp_path / "train.py").write_text(f"import sys, timm\nprint(timm.is_model({NAME!r}), __name__, sys.argv[1:])")
    monkeypatch.setattr(sys, "argv", ["with_internimage.py", str(tmp_path / "train.py"), "--model", NAME])
    exec(block_with("runpy.run_path"), {})
    assert capsys.readouterr().out == f"True __main__ ['--model', '{NAME}']\n"


def test_what_timms_scripts_ask_for_is_there(released, images):
    """The calls that train.py, validate.py and benchmark.py make; the scripts are not part of timm's package."""
    unset = dict.fromkeys(("drop_path_rate", "drop_block_rate", "global_pool", "bn_momentum", "bn_eps", "num_classes"))
    resolved = timm.models.resolve_model_input_args(NAME, {"img_size": 64}, pretrained=True, scriptable=False, **unset)
    model = timm.create_model(**{**resolved, **SMALL}, drop_rate=0.0)
    torch.testing.assert_close(model.head.weight, released[0].head.weight)
    data = timm.data.resolve_input_data_config(model, {"img_size": 64}, use_test_size=True)
    assert data["input_size"] == (3, 64, 64)
    model.set_grad_checkpointing(enable=True)
    model = model.to(memory_format=torch.channels_last)
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.9)
    assert len(optimizer.param_groups) == 10
    average = timm.utils.ModelEmaV3(model)
    model(images).mean().backward()
    timm.utils.dispatch_clip_grad(timm.models.model_parameters(model), value=1.0)
    optimizer.step()
    average.update(model)
    timm.models.load_checkpoint(model, str(released[1]))
    torch.testing.assert_close(timm.utils.reparameterize_model(model).eval()(images), released[0](images))
