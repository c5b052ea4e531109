"""Each value of a released detection recipe (vocabulary of mmdet 2) beside that of our configuration."""

import inspect
from collections.abc import Iterator
from pathlib import Path

from internimage import FlashInternImage, InternImage
from mm_recipes import DETECTION

__all__ = ["CONFIGS", "values"]

CONFIGS = DETECTION.configs

Values = Iterator[tuple[str, object, object]]  # what, ours, theirs


def values(name: str) -> Values:
    ours, theirs = DETECTION.config(name), DETECTION.recipes[name]
    yield from _backbone(ours["model"]["backbone"], theirs["model"]["backbone"])
    yield from _schedule(ours, theirs)
    yield from _optimizer(ours, theirs)
    yield from _data(ours, theirs["data"])
    yield from _images(ours, theirs["data"])
    yield from _evaluation(ours, theirs)
    if "rpn_head" in theirs["model"]:
        yield from _two_stages(ours["model"], theirs["model"], masks=not name.startswith("crowd"))
    else:
        yield from _dino(ours["model"], theirs["model"])


def _as_list(value: object) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


def _innermost(split: dict) -> dict:
    """The innermost data set of a data-loader configuration, or of an old `data.train`."""
    while "dataset" in split or "datasets" in split:
        split = split["dataset"] if "dataset" in split else split["datasets"][0]
    return split


def _backbone(ours: dict, theirs: dict) -> Values:
    defaults = {
        key: parameter.default
        for cls in (InternImage, FlashInternImage)
        for key, parameter in inspect.signature(cls.__init__).parameters.items()
    } | {"init_cfg": None}
    mine = {key: ours.get(key, defaults.get(key)) for key in theirs}
    mine["res_post_norm"] = bool(mine.get("res_post_norm"))
    start, released_start = mine.pop("init_cfg"), theirs["init_cfg"]
    rest = {key: value for key, value in theirs.items() if key != "init_cfg"}
    yield "backbone", mine, {"res_post_norm": False} | rest
    yield "backbone arguments that the recipe lacks", sorted(set(ours) - set(theirs)), []
    # One recipe names the same file at its older address.
    files = [Path((one or {}).get("checkpoint", "")).name for one in (start, released_start)]
    yield "pretrained file", *files


def _schedule(ours: dict, theirs: dict) -> Values:
    warmup, *decay = ours["param_scheduler"]
    old, runner = theirs["lr_config"], theirs["runner"]
    yield (
        "warm-up",
        warmup,
        {
            "type": "LinearLR",
            "start_factor": old["warmup_ratio"],
            "by_epoch": False,
            "begin": 0,
            "end": old["warmup_iters"],
        },
    )
    yield "milestones", [milestone for part in decay for milestone in part["milestones"]], old["step"]
    for part in decay:
        given = {key: part[key] for key in ("gamma", "by_epoch", "end")}
        yield "decay", given, {"gamma": 0.1, "by_epoch": True, "end": runner["max_epochs"]}
    length = "max_epochs" if "max_epochs" in runner else "max_iters"
    loop = ours["train_cfg"]
    yield length, loop[length], runner[length]
    yield "kind of loop", loop["type"][:5].rstrip("B"), "Epoch" if length == "max_epochs" else "Iter"
    yield "validation interval", loop["val_interval"], theirs["evaluation"].get("interval", 1)


def _optimizer(ours: dict, theirs: dict) -> Values:
    wrapper, old = ours["optim_wrapper"], theirs["optimizer"]
    for key in ("type", "lr", "weight_decay"):
        yield f"optimizer.{key}", wrapper["optimizer"][key], old[key]
    yield "paramwise_cfg", wrapper["paramwise_cfg"], old["paramwise_cfg"]
    yield "constructor", wrapper["constructor"], old.get("constructor", "DefaultOptimWrapperConstructor")
    yield "clip_grad", wrapper.get("clip_grad"), theirs["optimizer_config"]["grad_clip"]
    averages = [hook for hook in ours["custom_hooks"] if hook["type"] == "EMAHook"]
    released = [hook for hook in theirs["custom_hooks"] if hook["type"] == "ExpMomentumEMAHook"]
    settings = [
        [{key: hook[key] for key in ("momentum", "priority")} for hook in each] for each in (averages, released)
    ]
    yield "averages of weights", *settings
    yield "load_from", ours["load_from"], theirs["load_from"]


def _data(ours: dict, theirs: dict) -> Values:
    yield "batch size", ours["train_dataloader"]["batch_size"], theirs["samples_per_gpu"]
    yield "workers", ours["train_dataloader"]["num_workers"], theirs["workers_per_gpu"]
    for split in ("train", "val", "test"):
        mine, released = _innermost(ours[f"{split}_dataloader"]), theirs[split]
        released = _innermost(released) if split == "train" else released
        files = _as_list(released["ann_file"])[0].removeprefix("./")
        yield f"{split} annotations", mine["data_root"] + mine["ann_file"], files
        folder = mine["data_root"] + next(iter(mine["data_prefix"].values()))
        released_folder = _as_list(released["img_prefix"])[0].removeprefix("./")
        yield f"{split} images", folder.rstrip("/"), released_folder.rstrip("/")
    wrappers = {"RepeatDataset": "times", "ClassBalancedDataset": "oversample_thr"}
    pair = [
        {key: one[key] for key in ("type", wrappers[one["type"]])} if one["type"] in wrappers else None
        for one in (ours["train_dataloader"]["dataset"], theirs["train"])
    ]
    yield "wrapper of the training data", *pair


_NOT_COMPARED = {  # reading, normalising, padding and packing; sizes and means are compared by themselves
    "Collect",
    "DefaultFormatBundle",
    "ImageToTensor",
    "LoadImageFromFile",
    "Normalize",
    "PackDetInputs",
    "Pad",
}


def _scales(value: list) -> list[tuple[int, int]]:
    """Scales as pairs (longer, shorter side), whichever way they are written."""
    value = value if isinstance(value[0], list) else [value]
    return sorted((max(scale), min(scale)) for scale in value)


def _steps(pipeline: list[dict]) -> list[tuple]:
    """What a pipeline of either vocabulary does to an image. Raises `ValueError` for an unknown step."""
    done = []
    for step in pipeline:
        kind = step["type"]
        if kind == "MultiScaleFlipAug":
            assert step["flip"] is False
            done.append(("resize", _scales(step["img_scale"])))
        elif kind in ("Resize", "RandomChoiceResize", "RandomResize"):
            assert step["keep_ratio"]
            scales = _scales(step.get("img_scale") or step.get("scales") or step["scale"])
            within = kind == "RandomResize" or step.get("multiscale_mode") == "range"
            done.append(("resize within" if within else "resize", scales))
        elif kind == "RandomFlip":
            done.append(("flip", step.get("flip_ratio", step.get("prob"))))
        elif kind == "RandomCrop":
            done.append(("crop", step["crop_type"], step["crop_size"], step["allow_negative_crop"]))
        elif kind in ("AutoAugment", "RandomChoice"):
            done.append(("one of", [_steps(branch) for branch in step.get("policies") or step["transforms"]]))
        elif kind == "LoadAnnotations":
            done.append(("annotations", step.get("with_bbox", False), step.get("with_mask", False)))
        elif kind not in _NOT_COMPARED:
            raise ValueError(f"no rule for the pipeline step {kind}")
    return done


def _images(ours: dict, theirs: dict) -> Values:
    old = _innermost(theirs["train"])["pipeline"]
    yield "training pipeline", _steps(_innermost(ours["train_dataloader"])["pipeline"]), _steps(old)
    tested = _steps(ours["test_dataloader"]["dataset"]["pipeline"])
    # The old test pipeline loads no annotations; today's evaluation needs them, after the image was scaled.
    scaled = [step for step in tested if step[0] != "annotations"]
    yield "test pipeline", scaled, _steps(theirs["test"]["pipeline"])
    normalize = next(step for step in old if step["type"] == "Normalize")
    pads = {step["size_divisor"] for step in old if step["type"] == "Pad"}
    preprocessor = ours["model"]["data_preprocessor"]
    for key in ("mean", "std"):
        yield key, preprocessor[key], normalize[key]
    yield "bgr_to_rgb", preprocessor["bgr_to_rgb"], normalize["to_rgb"]
    yield "padding", {preprocessor["pad_size_divisor"]}, pads


def _evaluation(ours: dict, theirs: dict) -> Values:
    metric, old = _as_list(ours["val_evaluator"])[0], theirs["evaluation"]
    # "auto" was the first metric; classwise results come first today, so ours is named.
    best = ours["default_hooks"]["checkpoint"]["save_best"]
    yield "keeps the best", best is not None, "save_best" in old
    if metric["type"] == "OpenImagesMetric":
        yield "metric", "mAP", old["metric"]
        return
    yield "metric", metric["metric"], old["metric"]
    yield "classwise", metric.get("classwise", False), old.get("classwise", False)
    if "ann_file" in metric:
        yield "evaluated annotations", metric["ann_file"], theirs["data"]["val"]["ann_file"]


def _two_stages(ours: dict, theirs: dict, masks: bool) -> Values:
    for key in ("type", "rpn_head", "train_cfg", "test_cfg"):
        yield key, ours[key], theirs[key]
    for key in ("in_channels", "out_channels", "num_outs"):
        yield f"neck.{key}", ours["neck"][key], theirs["neck"][key]
    heads, old = dict(ours["roi_head"]), {"mask_roi_extractor": None, "mask_head": None} | theirs["roi_head"]
    if isinstance(old["bbox_head"], list):
        # DCNv4FCBBoxHead without its option for DCNv4 is the ordinary head.
        yield "heads with DCNv4", [head for head in old["bbox_head"] if head.get("with_dcn")], []
        old["bbox_head"] = [
            {key: value for key, value in head.items() if key != "with_dcn"}
            | {"type": head["type"].replace("DCNv4FC", "ConvFC")}
            for head in old["bbox_head"]
        ]
    if not masks:
        yield "mask head", heads.pop("mask_head"), None
        old.pop("mask_head")
    yield "roi_head", heads, old


def _dino(ours: dict, theirs: dict) -> Values:
    old = theirs["bbox_head"]
    yield "type", ours["type"], theirs["type"]
    yield "test_cfg", ours["test_cfg"], theirs["test_cfg"]
    yield "neck", ours["neck"], _as_list(theirs["neck"])[0] | {"type": "ChannelMapper"}
    for key in ("num_classes", "sync_cls_avg_factor", "loss_cls", "loss_bbox", "loss_iou"):
        yield f"bbox_head.{key}", ours["bbox_head"][key], old[key]
    yield "queries", ours["num_queries"], old["num_query"]
    yield "proposals", ours["num_queries"], old["transformer"]["two_stage_num_proposals"]
    noise = {"label": ours["dn_cfg"]["label_noise_scale"], "box": ours["dn_cfg"]["box_noise_scale"]}
    yield "dn_cfg.group_cfg", ours["dn_cfg"]["group_cfg"], old["dn_cfg"]["group_cfg"]
    yield "dn_cfg.noise_scale", noise, old["dn_cfg"]["noise_scale"]
    for key in ("num_feats", "temperature", "normalize"):
        yield f"positional_encoding.{key}", ours["positional_encoding"][key], old["positional_encoding"][key]
    costs = [theirs["train_cfg"]["assigner"][f"{kind}_cost"] for kind in ("cls", "reg", "iou")]
    yield "match_costs", ours["train_cfg"]["assigner"]["match_costs"], costs
    for part in ("encoder", "decoder"):
        mine, layers = ours[part], old["transformer"][part]
        width = layers["transformerlayers"]["feedforward_channels"]
        yield f"{part}.num_layers", mine["num_layers"], layers["num_layers"]
        yield f"{part}.feedforward_channels", mine["layer_cfg"]["ffn_cfg"]["feedforward_channels"], width
