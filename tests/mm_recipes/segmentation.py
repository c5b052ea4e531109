"""Each value of a released segmentation recipe (vocabulary of mmseg 0) beside that of our configuration."""

import inspect
from collections.abc import Iterator

from mmseg.registry import DATASETS

from internimage import FlashInternImage, InternImage
from mm_recipes import SEGMENTATION

__all__ = ["CONFIGS", "config", "parts", "values"]

CONFIGS = SEGMENTATION.configs
config = SEGMENTATION.config

Values = Iterator[tuple[str, object, object]]  # what, ours, theirs


def values(name: str) -> Values:
    ours, theirs = SEGMENTATION.config(name), SEGMENTATION.recipes[name]
    yield from _backbone(ours["model"]["backbone"], theirs["model"]["backbone"])
    yield from _schedule(ours, theirs)
    yield from _optimizer(ours, theirs)
    yield from _data(ours, theirs)
    yield from _training_images(ours, theirs["data"]["train"]["pipeline"])
    yield from _test_images(ours, theirs["data"]["test"]["pipeline"][1])
    yield from _labels(ours)
    if "pixel_decoder" in theirs["model"]["decode_head"]:
        yield from _mask2former(ours["model"], theirs["model"])
    else:
        yield from _convolutional(ours["model"], theirs["model"])


def parts(dataset: dict) -> list[dict]:
    """The plain data sets of one of our data-loader configurations."""
    return dataset.get("datasets", [dataset])


def _some(entries: dict, *keys: str) -> dict:
    return {key: entries[key] for key in keys}


def _backbone(ours: dict, theirs: dict) -> Values:
    defaults = {
        key: parameter.default
        for cls in (InternImage, FlashInternImage)
        for key, parameter in inspect.signature(cls.__init__).parameters.items()
    } | {"init_cfg": None, "out_indices": [0, 1, 2, 3]}
    theirs = {"res_post_norm": False} | theirs
    mine = {key: ours.get(key, defaults.get(key)) or None for key in theirs}
    yield "backbone", mine, {key: value or None for key, value in theirs.items()}
    yield "backbone arguments that the recipe lacks", sorted(set(ours) - set(theirs) - {"out_indices"}), []


def _schedule(ours: dict, theirs: dict) -> Values:
    old, length = theirs["lr_config"], theirs["runner"]["max_iters"]
    yield "recipe's rule", [old["policy"], old["warmup"], old["by_epoch"]], ["poly", "linear", False]
    common = {"by_epoch": False, "begin": 0}
    warmup, decay = ours["param_scheduler"]
    yield (
        "warm-up",
        warmup,
        {"type": "LinearLR", "start_factor": old["warmup_ratio"], "end": old["warmup_iters"]} | common,
    )
    yield "decay", decay, {"type": "PolyLR", "power": old["power"], "eta_min": old["min_lr"], "end": length} | common
    interval = theirs["evaluation"]["interval"]
    yield (
        "train_cfg",
        ours["train_cfg"],
        {"type": "IterBasedTrainLoop", "max_iters": length, "val_interval": interval},
    )


def _optimizer(ours: dict, theirs: dict) -> Values:
    wrapper, old = ours["optim_wrapper"], theirs["optimizer"]
    for key in ("type", "lr", "weight_decay"):
        yield f"optimizer.{key}", wrapper["optimizer"][key], old[key]
    yield "optimizer.betas", wrapper["optimizer"]["betas"], old.get("betas", [0.9, 0.999])
    yield "paramwise_cfg", wrapper["paramwise_cfg"], old["paramwise_cfg"]
    yield "constructor", wrapper["constructor"], old["constructor"]
    yield "clip_grad", wrapper.get("clip_grad"), theirs["optimizer_config"].get("grad_clip")
    yield "load_from", ours["load_from"], theirs["load_from"]


def _folders(split: dict) -> list[tuple[str, str]]:
    """`[(images, label maps)]` of an old `data.train`, which may list several folders."""
    pairs = split["img_dir"], split["ann_dir"]
    return list(zip(*pairs)) if isinstance(pairs[0], list) else [pairs]


def _data(ours: dict, theirs: dict) -> Values:
    loader, data = ours["train_dataloader"], theirs["data"]
    yield "batch size", loader["batch_size"], data["samples_per_gpu"]
    yield "workers", loader["num_workers"], data["workers_per_gpu"]
    for split in ("train", "val", "test"):
        old = data[split]
        sets = parts(ours[f"{split}_dataloader"]["dataset"])
        yield f"{split} folders", [tuple(one["data_prefix"].values()) for one in sets], _folders(old)
        for one in sets:
            yield f"{split} data set", one["type"].removeprefix("Lazy"), old["type"]
            yield f"{split} data_root", one["data_root"], old["data_root"]
            yield f"{split} list of files", one.get("ann_file"), old.get("split")
            if old.get("reduce_zero_label"):
                yield f"{split} reduce_zero_label", one["reduce_zero_label"], True
    evaluation = theirs["evaluation"]
    yield "val_evaluator", ours["val_evaluator"], {"type": "IoUMetric", "iou_metrics": [evaluation["metric"]]}
    yield "save_best", ours["default_hooks"]["checkpoint"]["save_best"], evaluation["save_best"]


_NOT_COMPARED = {  # normalising, padding and packing; means and sizes are compared by themselves
    "Collect",
    "DefaultFormatBundle",
    "Normalize",
    "PackSegInputs",
    "Pad",
    "ToMask",
}


def _steps(pipeline: list[dict]) -> list[tuple]:
    """What a training pipeline of either vocabulary does to an image. Raises `ValueError` for an unknown step."""
    done = []
    for step in pipeline:
        kind = step["type"]
        if kind in ("Resize", "RandomResize"):
            done.append(("resize", step.get("img_scale") or step["scale"], step.get("ratio_range")))
        elif kind == "RandomCrop":
            done.append(("crop", step["crop_size"], step["cat_max_ratio"]))
        elif kind == "RandomFlip":
            done.append(("flip", step["prob"]))
        elif kind in ("MapillaryHack", "MapillaryToCityscapes"):
            done.append(("labels of Cityscapes",))
        elif kind in ("PhotoMetricDistortion", "LoadImageFromFile"):
            done.append((kind,))
        elif kind in ("LoadAnnotations", "LoadLabelMap"):
            done.append(("labels",))
        elif kind not in _NOT_COMPARED:
            raise ValueError(f"no rule for the pipeline step {kind}")
    return done


def _training_images(ours: dict, old: list[dict]) -> Values:
    for one in parts(ours["train_dataloader"]["dataset"]):
        yield "training pipeline", _steps(one["pipeline"]), _steps(old)
    normalize, pad = (next(step for step in old if step["type"] == kind) for kind in ("Normalize", "Pad"))
    preprocessor = ours["model"]["data_preprocessor"]
    for key in ("mean", "std"):
        yield key, preprocessor[key], normalize[key]
    for key in ("size", "pad_val", "seg_pad_val"):
        yield key, preprocessor[key], pad[key]
    yield "bgr_to_rgb", preprocessor["bgr_to_rgb"], normalize["to_rgb"]


def _test_images(ours: dict, old: dict) -> Values:
    pipeline = ours["test_dataloader"]["dataset"]["pipeline"]
    kinds = [step["type"] for step in pipeline]
    divisors = [
        [step["size_divisor"] for step in steps if step["type"] == "ResizeToMultiple"]
        for steps in (pipeline, old["transforms"])
    ]
    yield "test size divisor", *divisors
    # Predictions are compared at the original size.
    yield "labels are read after scaling", kinds.index("LoadLabelMap") > kinds.index("Resize"), True
    resize = pipeline[kinds.index("Resize")]
    yield "test scale", _some(resize, "keep_ratio", "scale"), {"keep_ratio": True, "scale": old["img_scale"]}
    augmented = ours["tta_pipeline"][1]["transforms"]
    # Where the recipe names no scales, those of mmseg 0's --aug-test.
    ratios = old.get("img_ratios") or [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    scales = [[int(side * ratio) for side in old["img_scale"]] for ratio in ratios]
    yield "augmented test scales", [step["scale"] for step in augmented[0]], scales
    flips = next(branch for branch in augmented if branch[0]["type"] == "RandomFlip")
    yield "augmented test flips", [step["prob"] for step in flips], [0.0, 1.0]


def _labels(ours: dict) -> Values:
    """Labels are checked against the classes of the data."""
    for split in ("train", "test"):
        for one in parts(ours[f"{split}_dataloader"]["dataset"]):
            classes = len(DATASETS.get(one["type"]).METAINFO["classes"])
            counts = [step["num_classes"] for step in one["pipeline"] if step["type"] == "LoadLabelMap"]
            yield f"{split} labels", counts, [66 if one["type"] == "MapillaryDataset" else classes]
            # A head of 150 classes is kept from pretraining on ADE20K.
            yield f"{split} head's classes fit", ours["model"]["decode_head"]["num_classes"] in (classes, 150), True
    augmented = ours["tta_pipeline"][1]["transforms"]
    loading = [branch[0]["num_classes"] for branch in augmented if branch[0]["type"] == "LoadLabelMap"]
    yield "augmented test labels", loading, [classes]


def _convolutional(ours: dict, theirs: dict) -> Values:
    for key in ("type", "decode_head", "auxiliary_head", "test_cfg"):
        yield key, ours.get(key) or {}, theirs.get(key, {})


def _unscoped(value: object) -> object:
    """Without the scope that mmseg 1 needs before mmdet's types."""
    if isinstance(value, dict):
        return {key: _unscoped(item) for key, item in value.items()}
    return value.removeprefix("mmdet.") if isinstance(value, str) else value


def _mask2former(ours: dict, theirs: dict) -> Values:
    yield "type", ours["type"], theirs["type"]
    sliding = {key: value for key, value in theirs["test_cfg"].items() if key in ("mode", "crop_size", "stride")}
    yield "test_cfg", ours["test_cfg"], sliding
    head, old = _unscoped(ours["decode_head"]), theirs["decode_head"]
    same = ("type", "in_channels", "feat_channels", "out_channels", "num_queries", "num_classes")
    losses = ("loss_cls", "loss_mask", "loss_dice")
    for key in (*same, *losses, "num_transformer_feat_level", "enforce_decoder_input_project"):
        yield f"decode_head.{key}", head[key], old[key]
    pixels, old_pixels = head["pixel_decoder"], old["pixel_decoder"]
    encoding = {"type": "SinePositionalEncoding", **head["positional_encoding"]}
    yield "positional_encoding", encoding, old["positional_encoding"]
    yield "the recipe's positional_encoding of pixels", old_pixels["positional_encoding"], old["positional_encoding"]
    yield "positional_encoding of pixels", pixels["positional_encoding"], head["positional_encoding"]

    encoder, old_encoder = pixels["encoder"], old_pixels["encoder"]
    yield "encoder.num_layers", encoder["num_layers"], old_encoder["num_layers"]
    attention = dict(old_encoder["transformerlayers"]["attn_cfgs"])
    softmax = attention.pop("use_softmax", True)
    yield "pixel_decoder", pixels["type"], "MSDeformAttnPixelDecoder" if softmax else "UnnormalizedPixelDecoder"
    mine = encoder["layer_cfg"]["self_attn_cfg"]
    yield "encoder.attention", mine, {key: attention[key] for key in mine} | {"batch_first": True}
    mine, feed_forward = encoder["layer_cfg"]["ffn_cfg"], old_encoder["transformerlayers"]["ffn_cfgs"]
    yield "encoder.ffn_cfg", mine, _some(feed_forward, *mine)

    decoder, old_decoder = head["transformer_decoder"], old["transformer_decoder"]
    yield "decoder.num_layers", decoder["num_layers"], old_decoder["num_layers"]
    yield "decoder.return_intermediate", bool(decoder["return_intermediate"]), True
    old_layers = old_decoder["transformerlayers"]
    released = _some(old_layers["attn_cfgs"], "embed_dims", "num_heads") | {"dropout": 0}
    for kind in ("self_attn_cfg", "cross_attn_cfg"):
        mine = _some(decoder["layer_cfg"][kind], "embed_dims", "num_heads", "dropout")
        yield f"decoder.{kind}", mine, released
    yield (
        "the recipe's dropout",
        _some(old_layers["attn_cfgs"], "attn_drop", "proj_drop"),
        {"attn_drop": 0, "proj_drop": 0},
    )
    mine = decoder["layer_cfg"]["ffn_cfg"]
    yield "decoder.ffn_cfg", mine, _some(old_layers["ffn_cfgs"], *mine)

    training, old_training = head["train_cfg"], theirs["train_cfg"]
    for key in ("num_points", "oversample_ratio", "importance_sample_ratio", "sampler"):
        yield f"train_cfg.{key}", training[key], old_training[key]
    costs = [_unscoped(cost) for cost in training["assigner"]["match_costs"]]
    yield "match_costs", costs, [old_training["assigner"][f"{kind}_cost"] for kind in ("cls", "mask", "dice")]
