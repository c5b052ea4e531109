"""The scripts of detection and segmentation as a user runs them: results, mistakes, several processes."""

import json
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_coco
import tiny_scenes
import torch
from mmcv.cnn import ConvModule
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.datasets import CocoDataset
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmseg.apis import MMSegInferencer, inference_model, init_model
from PIL import Image
from processes import in_two_processes

import internimage
from internimage.checkpoint import read_state_dict
from internimage.errors import UserError
from internimage.flops import count_flops, count_parameters
from internimage.mm import runner
from internimage.mm.demo import image_demo
from internimage.mm.flops import get_flops, measure
from internimage.mm.runner import DETECTION, SEGMENTATION, train
from internimage.mm.runner import test as evaluate
from internimage.mm.tasks import FuseHook

ROOT = Path(__file__).parents[2]
TASKS = {
    "detection": SimpleNamespace(
        task=DETECTION,
        tiny=tiny_coco,
        image="images/0.png",
        size=(96, 64),
        last="epoch_1.pth",
        options=["train_cfg.max_epochs=1", "train_cfg.val_interval=1"],
        heads=["model.roi_head.bbox_head.num_classes", "model.roi_head.mask_head.num_classes"],
    ),
    "segmentation": SimpleNamespace(
        task=SEGMENTATION,
        tiny=tiny_scenes,
        image="images/val/0.png",
        size=(72, 48),
        last="iter_80.pth",
        options=["train_cfg.max_iters=80"],
        heads=["model.decode_head.num_classes", "model.auxiliary_head.num_classes"],
    ),
}


def train_once(folder: Path, name: str) -> SimpleNamespace:
    """Data, configuration `config`, and a short run in `run` with the checkpoint `checkpoint`."""
    case = TASKS[name]
    data = case.tiny.make_data(folder / "data")
    config = case.tiny.make_config(folder, data)
    train(case.task, [str(config), "--work-dir", str(folder / "run"), "--cfg-options", *case.options])
    files = {"data": data, "config": config, "run": folder / "run", "checkpoint": folder / "run" / case.last}
    return SimpleNamespace(**vars(case), **files)


@pytest.fixture(scope="module")
def detection(tmp_path_factory) -> SimpleNamespace:
    return train_once(tmp_path_factory.mktemp("detection"), "detection")


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory) -> SimpleNamespace:
    return train_once(tmp_path_factory.mktemp("segmentation"), "segmentation")


@pytest.fixture(params=list(TASKS))
def trained(request) -> SimpleNamespace:
    """Each of the two tasks."""
    init_default_scope({"detection": "mmdet", "segmentation": "mmseg"}[request.param])
    return request.getfixturevalue(request.param)


def last_log(run: Path) -> str:
    return max(run.glob("*/*.log"), key=lambda path: path.stat().st_mtime).read_text()


def metrics(run: Path) -> dict[str, float]:
    return json.loads(max(run.glob("*/*.json"), key=lambda path: path.stat().st_mtime).read_text().splitlines()[-1])


def largest_difference(first: Path, second: Path) -> float:
    first, second = read_state_dict(first), read_state_dict(second)
    assert first.keys() == second.keys()
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)


# Results


def test_training_writes_checkpoints_metrics_and_the_configuration(trained):
    assert (trained.run / "last_checkpoint").read_text() == str(trained.checkpoint)
    assert (trained.run / trained.config.name).is_file()
    log = last_log(trained.run)
    if trained.task is DETECTION:
        assert "loss_mask" in log and "coco/bbox_mAP_50" in log
        assert "optimizer.lr 0.001), 2 images per update; 2 updates, too few to learn much: train longer\n" in log
    else:
        assert "learning rate 0.01 (optim_wrapper.optimizer.lr 0.01), 2 images per update; 80 updates" in log
        assert "decode.loss_ce" in log and "aux.loss_ce" in log and list(trained.run.glob("best_mIoU_*.pth"))
        assert float(re.findall(r"mIoU: ([\d.]+)", log)[-1]) > 70  # it has learnt


def test_testing_writes_metrics_predictions_and_pictures(trained, tmp_path):
    found = tmp_path / ("found.pkl" if trained.task is DETECTION else "maps")
    outputs = ["--predictions", str(found), "--show-dir", str(tmp_path / "pictures"), "--output", str(tmp_path / "run")]
    evaluate(trained.task, ["--config", str(trained.config), "--checkpoint", str(trained.checkpoint), *outputs])
    images = (trained.data / trained.image).parent.iterdir()
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {path.name for path in images}
    if trained.task is DETECTION:
        assert len(pickle.loads(found.read_bytes())) == 4
        assert "coco/bbox_mAP" in metrics(tmp_path / "run")
    else:
        maps = [np.asarray(Image.open(path)) for path in found.glob("*.png")]
        assert len(maps) == 2
        assert all(labels.shape == (48, 72) and labels.max() < 3 for labels in maps)
        assert metrics(tmp_path / "run")["mIoU"] > 70


def test_results_for_a_server_are_written_and_not_evaluated_and_pictures_have_a_lowest_score(trained, tmp_path):
    options = [
        "--predictions",
        str(tmp_path / "result"),
        "--work-dir",
        str(tmp_path / "run"),
        "--format-only",
        "--fuse-conv-bn",
    ]
    options += ["--show-dir", str(tmp_path / "shown")]
    if trained.task is DETECTION:
        options += ["--show-score-thr", "1.01"]
    evaluate(trained.task, [str(trained.config), str(trained.checkpoint), *options])
    if trained.task is DETECTION:
        image, shown = (np.asarray(Image.open(folder / "0.png").convert("RGB"))
                        for folder in ((trained.data / trained.image).parent, tmp_path / "shown"))  # fmt: skip
        assert np.array_equal(shown[:, image.shape[1] :], image)  # no prediction beside the annotations
        assert {"image_id", "bbox", "score"} <= json.loads((tmp_path / "result.bbox.json").read_text())[0].keys()
    else:
        assert len(list((tmp_path / "result").glob("*.png"))) == 2
    assert not [path for path in (tmp_path / "run").rglob("*.json") if re.search("bbox_mAP|mIoU", path.read_text())]


def test_folded_batch_norms_give_the_same_result():
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(ConvModule(3, 3, 3, norm_cfg={"type": "BN"}) for _ in range(2)))
    for image in torch.randn(4, 8, 3, 9, 9):
        model(2 * image + 1)  # statistics
    expected = model.eval()(image)
    FuseHook().before_test(SimpleNamespace(model=model))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(model(image), expected)


def test_a_picture_is_drawn_from_an_image_of_any_size(trained, tmp_path, capsys):
    Image.open(trained.data / trained.image).resize((71, 45)).save(tmp_path / "odd.png")
    files = [str(tmp_path / "odd.png"), str(trained.config), str(trained.checkpoint)]
    image_demo(trained.task, [*files, "--out", str(tmp_path / "new/picture.png")])
    found = {DETECTION: r"\d+ objects.*", SEGMENTATION: r"\d+% (ground|red|green).*"}[trained.task]
    assert re.search(f"odd.png: {found}\nwrote", capsys.readouterr().out)
    assert Image.open(tmp_path / "new/picture.png").size == (284, 180)  # enlarged


def test_a_checkpoint_of_a_training_is_enough_to_test_and_to_predict(trained, tmp_path):
    evaluate(trained.task, [str(trained.checkpoint), "--work-dir", str(tmp_path / "alone")])
    evaluate(trained.task, [str(trained.config), str(trained.checkpoint), "--work-dir", str(tmp_path / "both")])
    alone, both = metrics(tmp_path / "alone"), metrics(tmp_path / "both")
    key = {DETECTION: "coco/bbox_mAP_50", SEGMENTATION: "mIoU"}[trained.task]
    assert alone[key] == both[key]
    model = internimage.load(trained.run, device="cpu")
    assert model.class_names[-2:] == ["red", "green"]
    image_demo(trained.task, [str(trained.data / trained.image), str(trained.run), "--output", str(tmp_path / "x.png")])
    assert Image.open(tmp_path / "x.png").size == tuple(320 // max(trained.size) * side for side in trained.size)


@pytest.mark.parametrize("options", [["--tta"], ["slide"]], ids=["several scales", "sliding windows"])
def test_other_ways_of_testing_give_about_the_same_result(options, segmentation, tmp_path):
    if options == ["slide"]:
        windows = ["model.test_cfg.mode=slide", "model.test_cfg.crop_size=(32,48)", "model.test_cfg.stride=(16,24)"]
        options = ["--cfg-options", *windows]
    files = [str(segmentation.config), str(segmentation.checkpoint)]
    evaluate(SEGMENTATION, [*files, "--work-dir", str(tmp_path), *options])
    assert metrics(tmp_path)["mIoU"] > 50


@pytest.mark.parametrize(
    ("name", "shape", "published"),
    [
        ("detection/configs/coco/mask_rcnn_internimage_t_fpn_1x_coco.py", (800, 1280), 270),
        ("segmentation/configs/ade20k/upernet_internimage_t_512_160k_ade20k.py", (512, 2048), 944),
    ],
)
def test_flops_are_the_published_ones(name, shape, published, capsys):
    get_flops((512, 512), [str(ROOT / name), "--shape", *map(str, shape)])
    printed = capsys.readouterr().out
    assert float(printed.split("parameters, ")[1].split()[0]) == pytest.approx(published, rel=0.01)
    assert "48.92 M parameters" in printed or "mask_rcnn" not in name


@pytest.mark.parametrize("name", ["mask_rcnn", "dino"])
def test_flops_from_the_meta_device_are_those_of_a_real_run(name, detection, tmp_path):
    init_default_scope("mmdet")
    config = Config.fromfile(tiny_coco.make_config(tmp_path, detection.data, name))
    parameters, flops = measure(config, (64, 96))
    model = MODELS.build(config.model).eval()
    samples = [DetDataSample(metainfo={key: (64, 96) for key in ("img_shape", "batch_input_shape", "ori_shape")})]

    def dense():
        maps = model.extract_feat(torch.zeros(1, 3, 64, 96))
        if name == "dino":
            return model.bbox_head(**model.forward_transformer(maps, samples))
        model.rpn_head(maps)
        rois = torch.tensor([[0.0, 8.0, 8.0, 40.0, 40.0]])
        model.roi_head._bbox_forward(maps, rois.expand(1000, 5))
        return model.roi_head._mask_forward(maps, rois.expand(100, 5))

    assert parameters == count_parameters(model)
    assert flops == count_flops(model, forward=dense)


def test_a_training_starts_from_a_model_with_other_classes(trained, tmp_path):
    count = {DETECTION: 1, SEGMENTATION: 9}[trained.task]
    options = [f"{head}={count}" for head in trained.heads] + [f"load_from={trained.checkpoint}"]
    if trained.task is DETECTION:
        options += [f"{phase}_dataloader.dataset.metainfo.classes=('green',)" for phase in ("train", "val")]
        options += ["train_cfg.max_epochs=1"]
        expected = "6 entries keep their initial values, since the file has none of their shape: roi_head.bbox_head"
    else:
        options += ["train_cfg.max_iters=2", "train_cfg.val_interval=2"]
        expected = "4 entries keep their initial values, since the file has none of their shape: decode_head.conv_seg"
    train(trained.task, [str(trained.config), "--work-dir", str(tmp_path), "--cfg-options", *options])
    assert expected in last_log(tmp_path)


def test_boxes_without_area_are_left_out(detection, tmp_path):
    content = json.loads((detection.data / "instances.json").read_text())
    content["annotations"][0]["bbox"][2] = 0
    (tmp_path / "flat.json").write_text(json.dumps(content))
    options = {"metainfo": {"classes": ("red", "green")}, "data_prefix": {"img": "images"}, "pipeline": []}
    dataset = CocoDataset(ann_file=str(tmp_path / "flat.json"), **options)
    assert [len(dataset.get_data_info(index)["instances"]) for index in range(2)] == [1, 2]


# The frameworks' own tools


def test_mmdets_inference_works_on_our_models(detection):
    files = (str(detection.config), str(detection.checkpoint))
    image = str(detection.data / detection.image)
    model = init_detector(*files, device="cpu")
    found = inference_detector(model, image).pred_instances
    assert model.dataset_meta["classes"] == ("red", "green") and found.masks.shape[1:] == (64, 96)
    results = DetInferencer(*files, device="cpu")(image)
    assert results["predictions"][0]["scores"] == pytest.approx(found.scores.tolist(), abs=1e-6)


def test_mmsegs_inference_works_on_our_models(segmentation):
    files = (str(segmentation.config), str(segmentation.checkpoint))
    image = str(segmentation.data / segmentation.image)
    model = init_model(*files, device="cpu")
    assert list(model.dataset_meta["classes"]) == tiny_scenes.CLASSES
    assert list(model.dataset_meta["palette"]) == tiny_scenes.PALETTE
    found = inference_model(model, image).pred_sem_seg.data[0].numpy()
    labels = np.asarray(Image.open(segmentation.data / "labels/val/0.png"))
    assert (found == labels)[labels != 255].mean() > 0.8
    assert np.array_equal(MMSegInferencer(*files, device="cpu")(image)["predictions"], found)


def test_mmengines_runner_resumes_our_checkpoints(detection, tmp_path):
    config = Config.fromfile(detection.config)
    config.update(work_dir=str(tmp_path), load_from=str(detection.checkpoint), resume=True)
    Runner.from_cfg(config).train()
    assert (tmp_path / "epoch_2.pth").is_file() and not (tmp_path / "epoch_1.pth").is_file()


# Mistakes


def fails(capsys, command, task, *arguments: object) -> str:
    """Run a command that must end with exit code 2; return its one line."""
    with pytest.raises(SystemExit) as stopped:
        command(task, [str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_options_of_training_change_the_configuration(trained, tmp_path, capsys, monkeypatch):
    """`--epochs` scales the schedule in epochs, and not the warm-up in steps."""
    configs = []

    def build(config: Config, *_: object) -> None:
        configs.append(config)
        raise UserError("built")

    monkeypatch.setattr(runner, "_build", build)
    words = ["--config", trained.config, "--output", tmp_path, "--batch-size", 3, "--lr", 0.5, "--seed", 7]
    words += ["--deterministic"]
    words += ["--pretrained", trained.checkpoint, "--opts", "val_dataloader.num_workers", 0, "default_scope=none"]
    assert "built" in fails(capsys, train, trained.task, *words)
    (config,) = configs
    assert (config.work_dir, config.load_from) == (str(tmp_path), str(trained.checkpoint))
    assert (config.train_dataloader.batch_size, config.val_dataloader.num_workers) == (3, 0)
    assert (config.optim_wrapper.optimizer.lr, config.randomness.seed, config.default_scope) == (0.5, 7, "none")
    assert config.randomness.deterministic
    if trained.task is SEGMENTATION:
        assert "counts steps; use --opts train_cfg.max_iters=N" in fails(
            capsys, train, trained.task, *words, "--epochs", 2
        )
        return
    recipe = ROOT / "detection/configs/coco/mask_rcnn_internimage_t_fpn_1x_coco.py"
    assert "built" in fails(capsys, train, DETECTION, recipe, "--epochs", 36)
    warmup, steps = configs[1].param_scheduler
    assert (
        configs[1].train_cfg.max_epochs == 36 and steps.milestones == [24, 33] and (steps.begin, steps.end) == (0, 36)
    )
    assert warmup == Config.fromfile(recipe).param_scheduler[0]


def test_mistakes_in_the_command_line_name_what_is_wrong(trained, tmp_path, capsys):
    task, config, checkpoint = trained.task, trained.config, trained.checkpoint
    (tmp_path / "broken.py").write_text("model = dict(")
    image = trained.data / trained.image
    for command, arguments, message in (
        (train, [config.with_name(config.name.replace(".py", "x.py"))], f"did you mean {config}"),
        (train, [tmp_path / "broken.py"], "broken.py cannot be read as a configuration"),
        (train, [config, "--cfg-options", "optim_wraper.x=1"], "no 'optim_wraper'; did you mean 'optim_wrapper'?"),
        (train, [config, "--cfg-options", "optim_wrapper"], "or KEY=VALUE, but 'optim_wrapper' has no value"),
        (
            train,
            [config, "--cfg-options", "train_dataloader.dataset.pipeline.9.x=1"],
            "x does not fit the conf.*Index 9",
        ),
        (train, [config, "--workdir", "x"], "unknown option --workdir; did you mean --work-dir"),
        (train, [config, "--resume", "none.pth"], "no checkpoint at none.pth"),
        (train, [config, "--cfg-options", "load_from=none.pth"], "no checkpoint at none.pth"),
        (evaluate, [config, "none.pth"], "no checkpoint at none.pth"),
        (evaluate, [config, checkpoint, "--format-only"], "--format-only needs --predictions PATH"),
        (image_demo, ["none.jpg", config, checkpoint], "no image at none.jpg"),
        (image_demo, [image, config, "none.pth"], "no checkpoint at none.pth"),
    ):
        assert re.search(message.replace("?", r"\?"), fails(capsys, command, task, *arguments))


def test_unknown_types_and_arguments_of_a_configuration_are_named(detection, tmp_path, capsys):
    for option, message in (
        ("model.type=MaskRCN", "type='MaskRCN' is not a model of mmdet; did you mean MaskRCNN?"),
        ("train_dataloader.dataset.pipeline.0.type=LoadImage", "type='LoadImage' is not a transform of mmdet; did you"),
        ("train_dataloader.dataset.pipeline.1.with_pc=True", "dict(type='LoadAnnotations') has no argument 'with_pc'"),
    ):
        arguments = [detection.config, "--work-dir", tmp_path, "--cfg-options", option]
        assert message in fails(capsys, train, DETECTION, *arguments)


def test_the_same_command_goes_on_instead_of_starting_over(detection):
    before = detection.checkpoint.read_bytes()
    time.sleep(1.01 - time.time() % 1)  # runs of one process in the same second share a logger
    train(DETECTION, [str(detection.config), "--work-dir", str(detection.run), "--cfg-options", *detection.options])
    assert detection.checkpoint.read_bytes() == before
    log = last_log(detection.run)
    assert f"resuming from {detection.checkpoint}; to start anew" in log
    assert "images per update" not in log  # nothing is left to do


def test_mixed_precision_needs_a_gpu(detection, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "--amp needs a GPU" in fails(capsys, train, DETECTION, detection.config, "--amp")


def test_a_checkpoint_of_another_model_is_not_tested(detection, tmp_path, capsys):
    dino = tiny_coco.make_config(tmp_path, detection.data, "dino")
    message = fails(capsys, evaluate, DETECTION, dino, detection.checkpoint, "--work-dir", tmp_path)
    assert "does not fit DINO" in message and "missing" in message


def test_test_time_augmentation_says_what_it_needs(detection, capsys):
    arguments = detection.config, detection.checkpoint, "--tta"
    assert "cannot merge the masks of augmented images" in fails(capsys, evaluate, DETECTION, *arguments)
    config = Config.fromfile(detection.config)
    config.test_dataloader.dataset.pipeline.pop(1)
    DETECTION.add_tta(config)
    assert "tta_pipeline" not in config


def test_any_detector_of_boxes_has_test_time_augmentation(detection, tmp_path):
    config = tiny_coco.make_config(tmp_path, detection.data, "dino")
    text = config.read_text()
    config.write_text(text[: text.index("tta_model")])
    init_default_scope("mmdet")
    model = MODELS.build(Config.fromfile(config).model)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "dino.pth")
    evaluate(DETECTION, [str(config), str(tmp_path / "dino.pth"), "--work-dir", str(tmp_path / "run"), "--tta"])
    assert "coco/bbox_mAP" in metrics(tmp_path / "run")
    (add := Config.fromfile(config)) and DETECTION.add_tta(add)
    sizes, flips, _ = add.tta_pipeline[1].transforms
    assert [step.scale for step in sizes] == [(77, 51), (96, 64), (115, 77)] and len(flips) == 2


def test_missing_data_is_named_with_its_option(trained, tmp_path, capsys):
    option = {DETECTION: "ann_file", SEGMENTATION: "data_prefix.seg_map_path"}[trained.task]
    options = ["--work-dir", tmp_path, "--cfg-options", f"train_dataloader.dataset.{option}=none"]
    message = fails(capsys, train, trained.task, trained.config, *options)
    assert f"none (train_dataloader.dataset.{option})" in message


def test_a_wrong_class_count_names_head_and_data(trained, tmp_path, capsys):
    head = trained.heads[-1]
    count, names = {DETECTION: (80, "red, green"), SEGMENTATION: (2, "ground, red, green")}[trained.task]
    options = ["--work-dir", tmp_path, "--cfg-options", f"{head}={count}"]
    message = fails(capsys, train, trained.task, trained.config, *options)
    name = head.removeprefix("model.").removesuffix(".num_classes")
    classes = names.count(",") + 1
    assert f"{name} has num_classes={count}, train_dataloader has {classes} classes ({names})" in message
    message = fails(capsys, train, trained.task, trained.config, *options[:-1], f"{head}=-3")
    assert "a size of the model is negative, such as num_classes; correct it" in message


def without_an_image(data):
    (data / "images/1.png").unlink()


def with_a_broken_image(data):
    next((data / "images").rglob("1.[pj][np]g")).write_bytes(b"no picture")


def without_annotations(data):
    content = json.loads((data / "instances.json").read_text())
    (data / "instances.json").write_text(json.dumps({**content, "annotations": []}))


def with_other_names(data):
    (data / "instances.json").write_text((data / "instances.json").read_text().replace('"green"', '"blue"'))


def with_labels_in_16_bits(data):
    labels = np.array(Image.open(data / "labels/train/1.png")).astype(np.uint16)
    labels[5, 5] = 256
    Image.fromarray(labels).save(data / "labels/train/1.png")


@pytest.mark.parametrize(
    ("task", "change", "workers", "message"),
    [
        ("detection", without_an_image, 0, "missing file .*1.png; the annotations name it"),
        ("detection", with_a_broken_image, 0, "1.png is not a readable image"),
        ("detection", without_annotations, 0, "train_dataloader has no image"),
        (
            "detection",
            with_other_names,
            0,
            r"lacks 1 of the 2 classes .* \('green', ...\); .* red, blue",
        ),
        ("segmentation", with_a_broken_image, 1, "1.jpg is not a readable image"),
        ("segmentation", with_labels_in_16_bits, 1, "^error: /.*/1.png has label 256 in 1 pixels"),
    ],
)
def test_bad_data_ends_in_one_line(task, change, workers, message, request, tmp_path, capsys):
    trained = request.getfixturevalue(task)
    data = trained.tiny.make_data(tmp_path / "data")
    change(data)
    options = [f"train_dataloader.dataset.data_root={data}", f"train_dataloader.num_workers={workers}"]
    if change is without_annotations:
        options.append("train_dataloader.dataset.filter_cfg.filter_empty_gt=True")
    found = fails(capsys, train, trained.task, trained.config, "--work-dir", tmp_path, "--cfg-options", *options)
    assert re.search(message, found), found


def test_batchnorm_with_one_image_names_the_batch_size(segmentation, tmp_path, capsys):
    norm = 'model = dict(decode_head=dict(norm_cfg=dict(_delete_=True, type="BN")))'
    (tmp_path / "one.py").write_text(f"_base_ = {str(segmentation.config)!r}\n{norm}\n")
    options = ["--work-dir", tmp_path, "--batch-size", "1"]
    found = fails(capsys, train, SEGMENTATION, tmp_path / "one.py", *options)
    assert re.search("a batch of one image; set train_dataloader.batch_size to at least 2", found), found


# Processes


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("slurm_train.sh", "part job c.py 16 --resume", "16 8 train.py c.py --resume --launcher slurm"),
        ("slurm_train.sh", "part job c.py --amp", "8 8 train.py c.py --amp --launcher slurm"),
        ("slurm_test.sh", "part job c.py w.pth 2 --tta", "2 2 test.py c.py w.pth --tta --launcher slurm"),
    ],
)
def test_slurm_scripts_start_one_task_per_gpu(script, arguments, expected, tmp_path):
    printed = under_slurm(tmp_path, script, arguments).stdout
    tasks, per_node, program = expected.split(" ", 2)
    assert f"--ntasks={tasks} --ntasks-per-node={per_node} " in printed
    assert printed.strip().endswith(program)


def under_slurm(
    folder: Path, script: str, arguments: str, code: int = 0, **environment: str
) -> subprocess.CompletedProcess:
    """Run a script with an `srun` that prints its arguments and ends with a code."""
    for name, body in (("srun", f'echo "$@"\nexit {code}'), ("scontrol", 'echo "scontrol $@"')):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": "python", **environment}
    command = [str(ROOT / "detection" / script), *arguments.split()]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_stopped_training_is_queued_again_and_resumed(tmp_path):
    again = under_slurm(tmp_path, "slurm_train.sh", "part job c.py", 75, SLURM_JOB_ID="12", SLURM_RESTART_COUNT="1")
    assert "--signal=USR1@120" in again.stdout and "c.py --resume --launcher slurm" in again.stdout
    assert again.stdout.endswith("scontrol requeue 12\n") and again.returncode == 75
    outside = under_slurm(tmp_path, "slurm_train.sh", "part job c.py", 75)
    assert "start the same command again to go on" in outside.stderr and "scontrol" not in outside.stdout
    assert under_slurm(tmp_path, "slurm_train.sh", "part job c.py", 3, SLURM_JOB_ID="12").returncode == 3


@pytest.mark.parametrize("script", ["dist_train.sh", "dist_test.sh", "slurm_train.sh", "slurm_test.sh"])
def test_both_tasks_have_the_same_scripts_which_print_their_usage(script):
    path = ROOT / "detection" / script
    assert path.read_text() == (ROOT / "segmentation" / script).read_text()
    result = subprocess.run([str(path)], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("usage: ")


def test_two_processes_train_like_one(detection, tmp_path):
    config = str(tiny_coco.make_config(tmp_path, detection.data, "dino"))
    train(DETECTION, [config, "--work-dir", str(tmp_path / "one")])
    command = [config, "--work-dir", str(tmp_path / "two"), "--launcher", "pytorch"]
    command += ["--cfg-options", "train_dataloader.batch_size=1"]
    assert in_two_processes(lambda: train(DETECTION, command) or 0) == [0, 0]
    assert largest_difference(tmp_path / "one/epoch_2.pth", tmp_path / "two/epoch_2.pth") < 2e-5
    tta = [config, str(tmp_path / "one/epoch_2.pth"), "--work-dir", str(tmp_path / "tta"), "--tta"]
    evaluate(DETECTION, tta)  # boxes, which are merged
    assert "coco/bbox_mAP" in last_log(tmp_path / "tta")


def test_a_training_script_runs_in_its_folder_and_leaves_no_worker(segmentation, tmp_path):
    options = ["--cfg-options", "train_cfg.max_iters=1", "train_cfg.val_interval=1", "train_dataloader.num_workers=1"]
    options += ["train_dataloader.persistent_workers=True", "default_hooks.checkpoint.interval=1"]
    command = [sys.executable, "train.py", str(segmentation.config), "--work-dir", str(tmp_path), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT / "segmentation", env=environment, check=True, capture_output=True, timeout=600)
    assert (tmp_path / "iter_1.pth").is_file()


def test_two_processes_pass_over_a_damaged_checkpoint_together(segmentation, tmp_path):
    short = ["train_cfg.max_iters=4", "train_cfg.val_interval=4", "default_hooks.checkpoint.interval=2"]
    options = ["--cfg-options", "optim_wrapper.optimizer.lr=1e-3", *short]
    config, one, two = str(segmentation.config), tmp_path / "one", tmp_path / "two"
    train(SEGMENTATION, [config, "--work-dir", str(one), *options])
    command = [config, "--work-dir", str(two), "--launcher", "pytorch", *options, "train_dataloader.batch_size=1"]
    assert in_two_processes(lambda: train(SEGMENTATION, command) or 0) == [0, 0]
    assert largest_difference(one / "iter_4.pth", two / "iter_4.pth") < 1e-4
    assert largest_difference(one / "iter_2.pth", one / "iter_4.pth") > 1e-3
    (two / "iter_4.pth").write_bytes((two / "iter_4.pth").read_bytes()[:-100])
    assert in_two_processes(lambda: train(SEGMENTATION, [*command, "--resume"]) or 0) == [0, 0]
    assert "skipping an unreadable checkpoint" in last_log(two)
    assert largest_difference(one / "iter_4.pth", two / "iter_4.pth") < 1e-4
