"""transformers' classes give what InternImage gives, and read and write the layout of the released repositories."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[hf]'")

from released_folder import RELEASED, SMALL, build, write_released
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto import auto_factory

import internimage
from golden import golden_model, image, relative_error
from internimage import hf
from internimage.hf.convert import to_folder

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["mini_l_64", "mini_h_96", "mini_flash_64"])
@torch.inference_mode()
def test_golden_logits_are_those_of_internimage_timm_and_transformers_in_every_layout(name, tmp_path):
    case = golden_model(name)
    flash = {"core_op": "DCNv4"} if "flash" in name else {}
    arguments = {"num_classes": 1000, **case.kwargs}
    state = build(**flash, **arguments).state_dict()
    section = {key.upper(): value for key, value in case.kwargs.items() if key != "num_classes"}
    type_ = "flash_intern_image" if flash else "intern_image"
    config = {"MODEL": {"TYPE": type_, "NUM_CLASSES": arguments["num_classes"], type_.upper(): section}}
    pth, plain = tmp_path / "checkpoint.pth", tmp_path / "plain"
    torch.save({"model": state, "config": json.dumps(config)}, pth)  # JSON is YAML
    released = write_released(tmp_path / "released", state, **arguments, **flash)
    write_released(plain, state, **arguments, **flash)
    save_file(state, plain / "model.safetensors", metadata={"format": "pt"})
    to_folder(pth, tmp_path / "converted")

    logits, variant = {}, "flash_intern_image_t_1k_224" if flash else "internimage_t_1k_224"
    for file in (pth, released, plain / "model.safetensors"):
        logits[f"internimage, {file.name}"] = internimage.create_model(variant, file, **arguments).eval()(case.input)
    for file in (pth, released / "model.safetensors", plain / "model.safetensors"):
        model = timm.create_model(variant, checkpoint_path=str(file), **arguments).eval()
        logits[f"timm, {file}"] = model(case.input)
    for folder in (tmp_path / "converted", released, plain):
        logits[f"transformers, {folder.name}"] = AutoModelForImageClassification.from_pretrained(folder)(case.input)[0]
    expected = torch.from_numpy(case.outputs["logits"])
    assert {which: relative_error(found, expected) < 1e-4 for which, found in logits.items()} == dict.fromkeys(
        logits, True
    )
    assert len(logits) == 9


def test_features_and_stages_are_those_of_internimage(small, released, monkeypatch):
    pixels = image(2, 3, 64, 96, seed=5)
    features, maps = small.forward_intermediates(pixels)
    out = AutoModel.from_pretrained(released)(pixels, output_hidden_states=True)
    torch.testing.assert_close(out.last_hidden_state, features)
    torch.testing.assert_close(out.pooler_output, small.forward_head(features, pre_logits=True))
    shapes = [(2, 16, 16, 24), (2, 16, 16, 24), (2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3)]
    assert [tuple(state.shape) for state in out.hidden_states] == shapes
    torch.testing.assert_close(list(out.hidden_states[1:]), maps)

    # Without this, transformers asks the Hub, and takes a local folder for a name of timm.
    monkeypatch.setattr(auto_factory, "hf_api", lambda: SimpleNamespace(repo_exists=lambda repo_id: True))
    backbone = AutoBackbone.from_pretrained(released, out_features=["stage2", "stage4"])
    assert type(backbone) is hf.InternImageBackbone and backbone.channels == [32, 128]
    assert backbone.config.stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert backbone.config.out_indices == [2, 4]
    torch.testing.assert_close(list(backbone(pixels).feature_maps), [maps[1], maps[3]])
    assert not any("head" in key for key in backbone.state_dict())


def test_saving_writes_the_released_layout_which_loads_back(small, released, tmp_path):
    model = hf.InternImageForImageClassification.from_pretrained(released)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {key: config[key] for key in RELEASED} == {**RELEASED, **SMALL}
    assert config["model_type"] == "internimage" and config["architectures"] == ["InternImageForImageClassification"]
    saved, wanted = load_file(tmp_path / "model.safetensors"), load_file(released / "model.safetensors")
    torch.testing.assert_close(saved, wanted)
    for class_ in (hf.InternImageForImageClassification, hf.InternImageModel, hf.InternImageBackbone):
        again = class_.from_pretrained(tmp_path)
        torch.testing.assert_close(again.state_dict(), class_.from_pretrained(released).state_dict())
    assert again.config.id2label[0] == "tench, Tinca tinca"  # the released files have no names of classes


def test_the_remote_code_of_a_saved_folder_is_this_package(released, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = tmp_path / "folder"
    hf.InternImageForImageClassification.from_pretrained(released).save_pretrained(folder)
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    classes = {auto: get_class_from_dynamic_module(reference, folder) for auto, reference in auto_map.items()}
    assert classes["AutoModelForImageClassification"] is hf.InternImageForImageClassification
    assert classes["AutoConfig"] is hf.InternImageConfig and classes["AutoBackbone"] is hf.InternImageBackbone
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).channels == SMALL["channels"]


def test_new_weights_are_initialised_as_internimage_does(released):
    model = hf.InternImageForImageClassification.from_pretrained(
        released, num_labels=7, ignore_mismatched_sizes=True, layer_scale=0.5
    )
    assert model.model.head.weight.shape == (7, 192) and 0.015 < model.model.head.weight.std() < 0.025
    assert not model.model.head.bias.any()
    own = hf.InternImageModel(hf.InternImageConfig(**SMALL | {"layer_scale": 0.5})).model
    reference = internimage.InternImage(**SMALL | {"layer_scale": 0.5}, num_classes=0)
    for (key, value), expected in zip(own.named_parameters(), reference.parameters(), strict=True):
        if not expected.std() > 0:  # constants
            torch.testing.assert_close(value, expected, msg=key)
        elif value.numel() >= 128:
            assert value.std().item() == pytest.approx(expected.std().item(), rel=0.3), key


def test_activation_checkpointing_recomputes_blocks_and_changes_no_gradient(released):
    gradients = []
    for enable in (False, True):
        model = hf.InternImageForImageClassification.from_pretrained(released)
        if enable:
            model.activation_checkpointing_enable()
        assert model.is_activation_checkpointing is enable
        calls = []
        model.model.levels[0].blocks[0].dcn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(image(1, 3, 64, 64, seed=1), labels=torch.tensor([3])).loss.backward()
        assert len(calls) == 1 + enable
        gradients.append(model.model.patch_embed.conv1.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("class_", "values", "message"),
    [
        (hf.InternImageModel, {"core_op": "DCNv9"}, "core_op must be one of DCNv3"),
        (hf.InternImageModel, {"num_classes": -3}, "num_labels must be at least 0; got -3"),
        (hf.InternImageModel, {"num_labels": -3}, "num_labels must be at least 0; got -3"),
        (hf.InternImageModel, {"depths": [1, 1]}, "depths and groups must have one entry per level"),
        (hf.InternImageBackbone, {"out_features": ["stage9"]}, "out_features must be a subset of stage_names"),
        (hf.InternImageBackbone, {"out_features": ["stage2", "stage1"]}, "must be in the same order"),
    ],
)
def test_arguments_that_do_not_fit_say_so(class_, values, message):
    with pytest.raises(ValueError, match=message):
        class_(hf.InternImageConfig(**{**SMALL, **values}))


def test_a_folder_without_configuration_and_another_number_of_classes_say_so(released, tmp_path):
    with pytest.raises(OSError, match=r"has no config\.json; convert a checkpoint"):
        hf.InternImageModel.from_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="You set `ignore_mismatched_sizes` to `False`"):
        AutoModelForImageClassification.from_pretrained(released, num_labels=7)
    model = hf.InternImageModel.from_pretrained(released)
    with pytest.raises(TypeError, match="pixel_values"):
        model()
    with pytest.raises(ValueError, match=r"images must have shape \(N, 3, H, W\); got \(1, 4, 8, 8\)"):
        model(torch.zeros(1, 4, 8, 8))


def test_only_the_package_hf_imports_transformers():
    names = set()
    for path in sorted((ROOT / "internimage").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(module.split(".")[0] == "transformers" for module in modules):
                names.add(path.parent.relative_to(ROOT).as_posix())
    assert names == {"internimage/hf"}
