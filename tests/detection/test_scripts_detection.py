"""The scripts of detection as a user runs them: results, mistakes, several processes, killed runs."""

import detection.models  # noqa: F401 - isort: skip - before mmdet
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from tiny_coco import ROOT, make_config, make_data

from internimage.checkpoint import read_state_dict
from internimage.flops import count_flops, count_parameters
from internimage.mm.demo import image_demo
from internimage.mm.flops import get_flops, measure
from internimage.mm.runner import DETECTION, train
from internimage.mm.runner import test as evaluate

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with data, `mask_rcnn.py`, `dino.py`, and the run `mask_rcnn` of one epoch."""
    folder = tmp_path_factory.mktemp("detection")
    data = make_data(folder / "data")
    make_config(folder, data, "dino")
    config = make_config(folder, data)
    options = ["train_cfg.max_epochs=1", "train_cfg.val_interval=1"]
    train(DETECTION, [str(config), "--work-dir", str(folder / "mask_rcnn"), "--cfg-options", *options])
    return folder


def last_log(run: Path) -> str:
    return max(run.glob("*/*.log"), key=lambda path: path.stat().st_mtime).read_text()


# Results


def test_training_writes_checkpoints_metrics_and_the_configuration(trained):
    run = trained / "mask_rcnn"
    assert (run / "last_checkpoint").read_text().endswith("epoch_1.pth") and (run / "mask_rcnn.py").is_file()
    log = last_log(run)
    assert "loss_mask" in log and "coco/bbox_mAP_50" in log


def test_testing_writes_metrics_predictions_and_pictures(trained, tmp_path):
    checkpoint = trained / "mask_rcnn/epoch_1.pth"
    outputs = ["--out", str(tmp_path / "found.pkl"), "--show-dir", str(tmp_path / "pictures")]
    evaluate(DETECTION, [str(trained / "mask_rcnn.py"), str(checkpoint), "--work-dir", str(tmp_path), *outputs])
    assert len(pickle.loads((tmp_path / "found.pkl").read_bytes())) == 4
    assert len(list((tmp_path / "pictures").iterdir())) == 4
    assert "coco/bbox_mAP" in json.loads(next(tmp_path.glob("*/*.json")).read_text())


def test_a_picture_is_drawn_from_an_image(trained, tmp_path, capsys):
    files = [str(trained / name) for name in ("data/images/0.png", "mask_rcnn.py", "mask_rcnn/epoch_1.pth")]
    image_demo(DETECTION, [*files, "--out", str(tmp_path / "new/picture.jpg")])
    assert "objects with a score of at least 0.3; drawn to" in capsys.readouterr().out
    assert Image.open(tmp_path / "new/picture.jpg").size == (96, 64)


def test_flops_are_the_published_ones(capsys):
    get_flops((800, 1280), [str(ROOT / "detection/configs/coco/mask_rcnn_internimage_t_fpn_1x_coco.py")])
    printed = capsys.readouterr().out
    assert "48.92 M parameters" in printed
    assert float(printed.split("parameters, ")[1].split()[0]) == pytest.approx(270, rel=0.005)


@pytest.mark.parametrize("name", ["mask_rcnn", "dino"])
def test_flops_from_the_meta_device_are_those_of_a_real_run(name, trained):
    config = Config.fromfile(trained / f"{name}.py")
    parameters, flops = measure(config, (64, 96))
    model = MODELS.build(config.model).eval()
    samples = [DetDataSample(metainfo={key: (64, 96) for key in ("img_shape", "batch_input_shape", "ori_shape")})]

    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            maps = model.extract_feat(images)
            if name == "dino":
                return model.bbox_head(**model.forward_transformer(maps, samples))
            model.rpn_head(maps)
            rois = torch.tensor([[0.0, 8.0, 8.0, 40.0, 40.0]])
            model.roi_head._bbox_forward(maps, rois.expand(1000, 5))
            return model.roi_head._mask_forward(maps, rois.expand(100, 5))

    assert parameters == count_parameters(model)
    assert flops == count_flops(Dense(), torch.zeros(1, 3, 64, 96))


def test_a_training_starts_from_a_detector_with_other_classes(trained, tmp_path):
    heads = [f"model.roi_head.{head}.num_classes=1" for head in ("bbox_head", "mask_head")]
    data = [f"{phase}_dataloader.dataset.metainfo.classes=('green',)" for phase in ("train", "val")]
    options = [
        "--cfg-options",
        *heads,
        *data,
        f"load_from={trained / 'mask_rcnn/epoch_1.pth'}",
        "train_cfg.max_epochs=1",
    ]
    train(DETECTION, [str(trained / "mask_rcnn.py"), "--work-dir", str(tmp_path), *options])
    assert "6 entries of other shape, or not in the file, keep initial values: roi_head.bbox_head" in last_log(tmp_path)


def test_boxes_without_area_are_left_out(trained, tmp_path):
    from mmdet.datasets import CocoDataset

    content = json.loads((trained / "data/instances.json").read_text())
    content["annotations"][0]["bbox"][2] = 0
    (tmp_path / "flat.json").write_text(json.dumps(content))
    options = {"metainfo": {"classes": ("red", "green")}, "data_prefix": {"img": "images"}, "pipeline": []}
    dataset = CocoDataset(ann_file=str(tmp_path / "flat.json"), **options)
    assert [len(dataset.get_data_info(index)["instances"]) for index in range(2)] == [1, 2]


# mmdet's own tools


def test_mmdets_inference_works_on_our_models(trained):
    files = (str(trained / "mask_rcnn.py"), str(trained / "mask_rcnn/epoch_1.pth"))
    image = str(trained / "data/images/0.png")
    model = init_detector(*files, device="cpu")
    found = inference_detector(model, image).pred_instances
    assert model.dataset_meta["classes"] == ("red", "green") and found.masks.shape[1:] == (64, 96)
    results = DetInferencer(*files, device="cpu")(image)
    assert results["predictions"][0]["scores"] == pytest.approx(found.scores.tolist(), abs=1e-6)


def test_mmengines_runner_resumes_our_checkpoints(trained, tmp_path):
    config = Config.fromfile(trained / "mask_rcnn.py")
    config.update(work_dir=str(tmp_path), load_from=str(trained / "mask_rcnn/epoch_1.pth"), resume=True)
    runner = Runner.from_cfg(config)
    runner.train()
    assert (tmp_path / "epoch_2.pth").is_file() and not (tmp_path / "epoch_1.pth").is_file()


# Mistakes


def fails(capsys, command, *arguments: object) -> str:
    """Run a command that must end with exit code 2; return its one line."""
    with pytest.raises(SystemExit) as stopped:
        command(DETECTION, [str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_missing_configuration_names_the_nearest(trained, capsys):
    assert "did you mean" in fails(capsys, train, trained / "mask_rnn.py")


def test_a_broken_configuration_is_named(tmp_path, capsys):
    (tmp_path / "broken.py").write_text("model = dict(")
    assert "broken.py cannot be read as a configuration" in fails(capsys, train, tmp_path / "broken.py")


def test_a_misspelt_option_names_the_nearest(trained, capsys):
    message = fails(capsys, train, trained / "mask_rcnn.py", "--cfg-options", "optim_wraper.optimizer.lr=1")
    assert "no 'optim_wraper'; did you mean 'optim_wrapper'?" in message


@pytest.mark.parametrize("arguments", [["--resume", "none.pth"], ["--cfg-options", "load_from=none.pth"]])
def test_a_missing_checkpoint_is_named_before_training(trained, arguments, capsys):
    assert "no checkpoint at none.pth" in fails(capsys, train, trained / "mask_rcnn.py", *arguments)


def test_mixed_precision_needs_a_gpu(trained, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "--amp needs a GPU" in fails(capsys, train, trained / "mask_rcnn.py", "--amp")


def test_a_checkpoint_of_another_model_is_not_tested(trained, tmp_path, capsys):
    message = fails(capsys, evaluate, trained / "dino.py", trained / "mask_rcnn/epoch_1.pth", "--work-dir", tmp_path)
    assert "does not fit DINO" in message and "missing" in message


def test_missing_data_is_named_with_its_option(trained, tmp_path, capsys):
    option = "train_dataloader.dataset.ann_file=none.json"
    message = fails(capsys, train, trained / "mask_rcnn.py", "--work-dir", tmp_path, "--cfg-options", option)
    assert "none.json (train_dataloader.dataset.ann_file)" in message


def changed_data(folder: Path, change) -> list[str]:
    """Options for a copy of the data whose annotations `change` has edited."""
    content = json.loads((make_data(folder / "changed") / "instances.json").read_text())
    change(content, folder / "changed/images")
    (folder / "changed/instances.json").write_text(json.dumps(content))
    return ["--work-dir", str(folder), "--cfg-options", f"train_dataloader.dataset.data_root={folder / 'changed'}"]


def _without_an_image(content, images):
    (images / "1.png").unlink()


def _with_a_broken_image(content, images):
    (images / "1.png").write_bytes(b"no picture")


def _without_annotations(content, images):
    content["annotations"] = []


def _with_other_names(content, images):
    content["categories"][1]["name"] = "blue"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_an_image, "missing file .*1.png; the annotations name it"),
        (_with_a_broken_image, "1.png is not a readable image"),
        (_without_annotations, "train_dataloader has no image"),
        (_with_other_names, "lacks 1 of the 2 classes of train_dataloader \\('green', ...\\); .* are red, blue"),
    ],
)
def test_bad_data_ends_in_one_line(change, message, trained, tmp_path, capsys):
    options = changed_data(tmp_path, change)
    if change is _without_annotations:
        options.append("train_dataloader.dataset.filter_cfg.filter_empty_gt=True")
    found = fails(capsys, train, trained / "mask_rcnn.py", *options)
    assert re.search(message, found), found


def test_a_wrong_class_count_names_head_and_data(trained, tmp_path, capsys):
    options = ["--work-dir", tmp_path, "--cfg-options", "model.roi_head.bbox_head.num_classes=80"]
    message = fails(capsys, train, trained / "mask_rcnn.py", *options)
    assert "roi_head.bbox_head has num_classes=80, train_dataloader has 2 classes (red, green)" in message


def test_masks_are_not_merged_over_augmented_images(trained, capsys):
    message = fails(capsys, evaluate, trained / "mask_rcnn.py", trained / "mask_rcnn/epoch_1.pth", "--tta")
    assert "no tta_model" in message


def test_a_missing_image_is_named(trained, capsys):
    assert "no image at none.jpg" in fails(capsys, image_demo, "none.jpg", trained / "mask_rcnn.py", "none.pth")


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
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "python"}
    command = [str(ROOT / "detection" / script), *arguments.split()]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    tasks, per_node, program = expected.split(" ", 2)
    assert f"--ntasks={tasks} --ntasks-per-node={per_node} " in printed
    assert printed.strip().endswith(program)


@pytest.mark.parametrize("script", ["dist_train.sh", "dist_test.sh", "slurm_train.sh", "slurm_test.sh"])
def test_scripts_print_their_usage(script):
    result = subprocess.run([str(ROOT / "detection" / script)], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("usage: ")


def weights(run: Path, epoch: int) -> dict[str, torch.Tensor]:
    return read_state_dict(run / f"epoch_{epoch}.pth")


def largest_difference(first: dict, second: dict) -> float:
    assert first.keys() == second.keys()
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)


@pytest.fixture(scope="module")
def dino_run(trained) -> Path:
    """Three epochs of DINO in one process, two images at a time."""
    folder = trained / "dino"
    train(DETECTION, [str(trained / "dino.py"), "--work-dir", str(folder), "--cfg-options", "train_cfg.max_epochs=3"])
    return folder


def test_test_time_augmentation_runs(dino_run, trained, tmp_path):
    evaluate(DETECTION, [str(trained / "dino.py"), str(dino_run / "epoch_3.pth"), "--work-dir", str(tmp_path), "--tta"])
    assert "coco/bbox_mAP" in last_log(tmp_path)


@pytest.mark.slow
def test_two_processes_train_like_one(dino_run, trained, tmp_path):
    script = str(ROOT / "detection/dist_train.sh")
    options = ["--cfg-options", "train_cfg.max_epochs=3", "train_dataloader.batch_size=1"]
    command = [script, "2", str(trained / "dino.py"), "--work-dir", str(tmp_path), *options]
    subprocess.run(command, cwd=ROOT / "detection", env=ENVIRONMENT, check=True, capture_output=True, timeout=600)
    assert largest_difference(weights(dino_run, 3), weights(tmp_path, 3)) < 2e-5


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_weights(dino_run, trained, tmp_path):
    command = [sys.executable, "detection/train.py", str(trained / "dino.py"), "--work-dir", str(tmp_path)]
    options = ["--cfg-options", "train_cfg.max_epochs=3"]
    process = subprocess.Popen([*command, *options], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "last_checkpoint").is_file():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "epoch_3.pth").exists()
    train(DETECTION, [*command[2:], "--resume", *options])
    assert "resumed epoch: 1" in last_log(tmp_path) or "resumed epoch: 2" in last_log(tmp_path)
    assert largest_difference(weights(dino_run, 3), weights(tmp_path, 3)) < 1e-6
