"""The configurations against the released recipes, number by number."""

import segmentation.datasets  # noqa: F401 - isort: skip - before mmseg
import inspect

import pytest
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules
from seg_recipes import KEYS, NAMES, RECIPES, config, folders, parts, steps

from internimage import FlashInternImage, InternImage

register_all_modules()
recipes = pytest.mark.parametrize("name", sorted(RECIPES))


def plain(value):
    """Without the scope that mmseg 1 needs before mmdet's types."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.removeprefix("mmdet.") if isinstance(value, str) else value


def test_every_recipe_has_a_configuration_and_the_other_way_round():
    assert len(KEYS) == 28 and len(RECIPES) == 28 + 9
    assert set(NAMES) == set(RECIPES) and set(KEYS) < set(RECIPES)


@recipes
def test_the_backbone_has_the_arguments_of_the_recipe(name):
    ours, theirs = config(name)["model"]["backbone"], dict(RECIPES[name]["model"]["backbone"])
    defaults = {
        key: parameter.default
        for cls in (InternImage, FlashInternImage)
        for key, parameter in inspect.signature(cls.__init__).parameters.items()
    } | {"init_cfg": None, "out_indices": [0, 1, 2, 3]}
    theirs["res_post_norm"] = theirs.get("res_post_norm", False)
    assert {key: ours.get(key, defaults.get(key)) or None for key in theirs} == {
        key: value or None for key, value in theirs.items()
    }
    assert set(ours) <= set(theirs) | {"out_indices"}


@recipes
def test_the_schedule_is_that_of_the_recipe(name):
    ours, theirs = config(name), RECIPES[name]
    old, length = theirs["lr_config"], theirs["runner"]["max_iters"]
    assert (old["policy"], old["warmup"], old["by_epoch"]) == ("poly", "linear", False)
    common = {"by_epoch": False, "begin": 0}
    assert ours["param_scheduler"] == [
        {"type": "LinearLR", "start_factor": old["warmup_ratio"], "end": old["warmup_iters"]} | common,
        {"type": "PolyLR", "power": old["power"], "eta_min": old["min_lr"], "end": length} | common,
    ]
    assert ours["train_cfg"] == {
        "type": "IterBasedTrainLoop",
        "max_iters": length,
        "val_interval": theirs["evaluation"]["interval"],
    }


@recipes
def test_the_optimizer_and_the_initial_weights_are_those_of_the_recipe(name):
    ours, theirs = config(name)["optim_wrapper"], RECIPES[name]["optimizer"]
    for key in ("type", "lr", "weight_decay"):
        assert ours["optimizer"][key] == theirs[key]
    assert ours["optimizer"]["betas"] == theirs.get("betas", [0.9, 0.999])
    assert ours["paramwise_cfg"] == theirs["paramwise_cfg"]
    assert ours["constructor"] == theirs["constructor"]
    assert ours.get("clip_grad") == RECIPES[name]["optimizer_config"].get("grad_clip")
    assert config(name)["load_from"] == RECIPES[name]["load_from"]


@recipes
def test_the_data_are_those_of_the_recipe(name):
    ours, theirs = config(name), RECIPES[name]["data"]
    loader = ours["train_dataloader"]
    assert (loader["batch_size"], loader["num_workers"]) == (theirs["samples_per_gpu"], theirs["workers_per_gpu"])
    for split in ("train", "val", "test"):
        old = theirs[split]
        sets = parts(ours[f"{split}_dataloader"]["dataset"])
        assert [tuple(one["data_prefix"].values()) for one in sets] == folders(old)
        for one in sets:
            assert (one["type"].removeprefix("Lazy"), one["data_root"]) == (old["type"], old["data_root"])
            assert one.get("ann_file") == old.get("split")
            if old.get("reduce_zero_label"):
                assert one["reduce_zero_label"]
    assert ours["val_evaluator"] == {"type": "IoUMetric", "iou_metrics": [RECIPES[name]["evaluation"]["metric"]]}
    assert ours["default_hooks"]["checkpoint"]["save_best"] == RECIPES[name]["evaluation"]["save_best"]


@recipes
def test_training_images_are_scaled_cropped_and_flipped_as_in_the_recipe(name):
    ours, old = config(name), RECIPES[name]["data"]["train"]["pipeline"]
    for one in parts(ours["train_dataloader"]["dataset"]):
        assert steps(one["pipeline"]) == steps(old)
    normalize, pad = (next(step for step in old if step["type"] == kind) for kind in ("Normalize", "Pad"))
    preprocessor = ours["model"]["data_preprocessor"]
    for key in ("mean", "std"):
        assert preprocessor[key] == normalize[key]
    for key in ("size", "pad_val", "seg_pad_val"):
        assert preprocessor[key] == pad[key]
    assert preprocessor["bgr_to_rgb"] == normalize["to_rgb"]


@recipes
def test_test_images_are_scaled_as_in_the_recipe(name):
    ours, old = config(name), RECIPES[name]["data"]["test"]["pipeline"][1]
    pipeline = ours["test_dataloader"]["dataset"]["pipeline"]
    kinds = [step["type"] for step in pipeline]
    multiple = [step["size_divisor"] for step in old["transforms"] if step["type"] == "ResizeToMultiple"]
    assert [step["size_divisor"] for step in pipeline if step["type"] == "ResizeToMultiple"] == multiple
    assert kinds.index("LoadLabelMap") > kinds.index("Resize")  # predictions are compared at the original size
    resize = pipeline[kinds.index("Resize")]
    assert resize["keep_ratio"] and resize["scale"] == old["img_scale"]
    augmented = ours["tta_pipeline"][1]["transforms"]
    # Where the recipe names no scales, those of mmseg 0's --aug-test.
    ratios = old.get("img_ratios") or [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert [step["scale"] for step in augmented[0]] == [
        [int(side * ratio) for side in old["img_scale"]] for ratio in ratios
    ]
    flips = next(branch for branch in augmented if branch[0]["type"] == "RandomFlip")
    assert [step["prob"] for step in flips] == [0.0, 1.0]


@recipes
def test_labels_are_checked_against_the_classes_of_the_data(name):
    ours = config(name)
    for split in ("train", "test"):
        for one in parts(ours[f"{split}_dataloader"]["dataset"]):
            classes = len(DATASETS.get(one["type"]).METAINFO["classes"])
            expected = 66 if one["type"] == "MapillaryDataset" else classes
            counts = [step["num_classes"] for step in one["pipeline"] if step["type"] == "LoadLabelMap"]
            assert counts == [expected]
            assert ours["model"]["decode_head"]["num_classes"] in (classes, 150)
    augmented = ours["tta_pipeline"][1]["transforms"]
    (loading,) = [branch[0] for branch in augmented if branch[0]["type"] == "LoadLabelMap"]
    assert loading["num_classes"] == classes


convolutional = [name for name in RECIPES if "mask2former" not in name]


@pytest.mark.parametrize("name", sorted(convolutional))
def test_upernet_and_segformer_are_those_of_the_recipe(name):
    ours, theirs = config(name)["model"], RECIPES[name]["model"]
    for key in ("type", "decode_head", "auxiliary_head", "test_cfg"):
        assert (ours.get(key) or {}) == theirs.get(key, {}), key


@pytest.mark.parametrize("name", sorted(set(RECIPES) - set(convolutional)))
def test_mask2former_is_that_of_the_recipe(name):
    ours, theirs = config(name)["model"], RECIPES[name]["model"]
    assert ours["type"] == theirs["type"]
    same = ("mode", "crop_size", "stride")
    assert ours["test_cfg"] == {key: value for key, value in theirs["test_cfg"].items() if key in same}
    head, old = plain(ours["decode_head"]), theirs["decode_head"]
    same = ("type", "in_channels", "feat_channels", "out_channels", "num_queries", "num_classes")
    losses = ("loss_cls", "loss_mask", "loss_dice")
    for key in (*same, *losses, "num_transformer_feat_level", "enforce_decoder_input_project"):
        assert head[key] == old[key], key
    encoding = {"type": "SinePositionalEncoding", **head["positional_encoding"]}
    assert encoding == old["positional_encoding"] == old["pixel_decoder"]["positional_encoding"]
    assert head["pixel_decoder"]["positional_encoding"] == head["positional_encoding"]

    encoder, old_encoder = head["pixel_decoder"]["encoder"], old["pixel_decoder"]["encoder"]
    assert encoder["num_layers"] == old_encoder["num_layers"]
    attention = dict(old_encoder["transformerlayers"]["attn_cfgs"])
    softmax = attention.pop("use_softmax", True)
    assert head["pixel_decoder"]["type"] == ("MSDeformAttnPixelDecoder" if softmax else "UnnormalizedPixelDecoder")
    mine = encoder["layer_cfg"]["self_attn_cfg"]
    assert mine == {key: attention[key] for key in mine} | {"batch_first": True}
    feed_forward = old_encoder["transformerlayers"]["ffn_cfgs"]
    assert encoder["layer_cfg"]["ffn_cfg"] == {key: feed_forward[key] for key in encoder["layer_cfg"]["ffn_cfg"]}

    decoder, old_decoder = head["transformer_decoder"], old["transformer_decoder"]
    assert decoder["num_layers"] == old_decoder["num_layers"] and decoder["return_intermediate"]
    attention = old_decoder["transformerlayers"]["attn_cfgs"]
    for kind in ("self_attn_cfg", "cross_attn_cfg"):
        mine = decoder["layer_cfg"][kind]
        assert (mine["embed_dims"], mine["num_heads"]) == (attention["embed_dims"], attention["num_heads"])
        assert mine["dropout"] == attention["attn_drop"] == attention["proj_drop"] == 0
    feed_forward = old_decoder["transformerlayers"]["ffn_cfgs"]
    assert decoder["layer_cfg"]["ffn_cfg"] == {key: feed_forward[key] for key in decoder["layer_cfg"]["ffn_cfg"]}

    training, old_training = head["train_cfg"], theirs["train_cfg"]
    for key in ("num_points", "oversample_ratio", "importance_sample_ratio", "sampler"):
        assert training[key] == old_training[key]
    costs = [plain(cost) for cost in training["assigner"]["match_costs"]]
    assert costs == [old_training["assigner"][f"{kind}_cost"] for kind in ("cls", "mask", "dice")]
