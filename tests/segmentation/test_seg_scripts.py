"""The scripts of segmentation as a user runs them on own data: results, mistakes, several processes, killed runs."""

import segmentation.models  # noqa: F401 - isort: skip - before mmseg
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmseg.apis import MMSegInferencer, inference_model, init_model
from PIL import Image
from tiny_scenes import CLASSES, PALETTE, ROOT, make_config, make_data

from internimage.checkpoint import read_state_dict
from internimage.mm.demo import image_demo
from internimage.mm.flops import get_flops
from internimage.mm.runner import SEGMENTATION, train
from internimage.mm.runner import test as evaluate

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with `data`, `tiny.py` and the run `run` of 80 iterations."""
    folder = tmp_path_factory.mktemp("segmentation")
    config = make_config(folder, make_data(folder / "data"))
    train(SEGMENTATION, [str(config), "--work-dir", str(folder / "run")])
    return folder


def files(trained: Path) -> list[str]:
    return [str(trained / "tiny.py"), str(trained / "run/iter_80.pth")]


def last_log(run: Path) -> str:
    return max(run.glob("*/*.log"), key=lambda path: path.stat().st_mtime).read_text()


def metrics(run: Path) -> dict[str, float]:
    return json.loads(next(run.glob("*/*.json")).read_text().splitlines()[-1])


# Results


def test_training_learns_and_writes_checkpoints_and_metrics(trained):
    run = trained / "run"
    assert (run / "last_checkpoint").read_text().endswith("iter_80.pth") and list(run.glob("best_mIoU_*.pth"))
    log = last_log(run)
    assert "decode.loss_ce" in log and "aux.loss_ce" in log
    assert float(re.findall(r"mIoU: ([\d.]+)", log)[-1]) > 70


def test_testing_writes_metrics_label_maps_and_pictures(trained, tmp_path):
    outputs = ["--out", str(tmp_path / "maps"), "--show-dir", str(tmp_path / "pictures")]
    evaluate(SEGMENTATION, [*files(trained), "--work-dir", str(tmp_path / "run"), *outputs])
    assert metrics(tmp_path / "run")["mIoU"] > 70
    maps = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "maps").glob("*.png"))]
    assert len(maps) == 2 and all(labels.shape == (48, 72) and labels.max() < 3 for labels in maps)
    assert len([path for path in (tmp_path / "pictures").rglob("*.png")]) == 2


def test_testing_at_several_scales_gives_about_the_same_result(trained, tmp_path):
    evaluate(SEGMENTATION, [*files(trained), "--work-dir", str(tmp_path), "--tta"])
    assert metrics(tmp_path)["mIoU"] > 50


def test_sliding_windows_give_about_the_same_result(trained, tmp_path):
    windows = ["model.test_cfg.mode=slide", "model.test_cfg.crop_size=(32,48)", "model.test_cfg.stride=(16,24)"]
    evaluate(SEGMENTATION, [*files(trained), "--work-dir", str(tmp_path), "--cfg-options", *windows])
    assert metrics(tmp_path)["mIoU"] > 50


def test_a_picture_is_drawn_from_an_image_of_any_size(trained, tmp_path, capsys):
    Image.open(trained / "data/images/val/0.png").resize((71, 45)).save(tmp_path / "odd.png")
    image_demo(SEGMENTATION, [str(tmp_path / "odd.png"), *files(trained), "--out", str(tmp_path / "new/picture.png")])
    assert re.search(r"odd.png: [123] classes; drawn to", capsys.readouterr().out)
    assert Image.open(tmp_path / "new/picture.png").size == (71, 45)


def test_mmsegs_inference_works_on_our_models(trained):
    model = init_model(*files(trained), device="cpu")
    assert list(model.dataset_meta["classes"]) == CLASSES and list(model.dataset_meta["palette"]) == PALETTE
    found = inference_model(model, str(trained / "data/images/val/0.png")).pred_sem_seg.data[0].numpy()
    labels = np.asarray(Image.open(trained / "data/labels/val/0.png"))
    assert (found == labels)[labels != 255].mean() > 0.8
    inferencer = MMSegInferencer(files(trained)[0], files(trained)[1], device="cpu")
    assert np.array_equal(inferencer(str(trained / "data/images/val/0.png"))["predictions"], found)


@pytest.mark.parametrize(
    ("name", "shape", "published"),
    [
        ("ade20k/upernet_internimage_t_512_160k_ade20k", (512, 2048), 944),
        ("ade20k/upernet_internimage_l_640_160k_ade20k", (640, 2560), 2526),
        ("cityscapes/segformer_internimage_l_512x1024_160k_mapillary2cityscapes", (1024, 2048), 1580),
    ],
)
def test_flops_are_the_published_ones(name, shape, published, capsys):
    get_flops((512, 2048), [str(ROOT / f"segmentation/configs/{name}.py"), "--shape", *map(str, shape)])
    assert float(capsys.readouterr().out.split("parameters, ")[1].split()[0]) == pytest.approx(published, rel=0.01)


# Mistakes


def fails(capsys, command, *arguments: object) -> str:
    """Run a command that must end with exit code 2; return its one line."""
    with pytest.raises(SystemExit) as stopped:
        command(SEGMENTATION, [str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_missing_configuration_names_the_nearest(trained, capsys):
    assert "did you mean" in fails(capsys, train, trained / "tinny.py")


def test_a_missing_image_or_checkpoint_is_named(trained, capsys):
    config, _ = files(trained)
    assert "no image at none.jpg" in fails(capsys, image_demo, "none.jpg", *files(trained))
    image = trained / "data/images/val/0.png"
    assert "no checkpoint at none.pth" in fails(capsys, image_demo, image, config, "none.pth")
    assert "no checkpoint at none.pth" in fails(capsys, evaluate, config, "none.pth")


def test_missing_data_is_named_with_its_option(trained, tmp_path, capsys):
    options = ["--work-dir", tmp_path, "--cfg-options", "train_dataloader.dataset.data_prefix.seg_map_path=none"]
    message = fails(capsys, train, trained / "tiny.py", *options)
    assert "none (train_dataloader.dataset.data_prefix.seg_map_path)" in message


def test_a_head_for_fewer_classes_than_the_data_has_is_named(trained, tmp_path, capsys):
    options = ["--work-dir", tmp_path, "--cfg-options", "model.auxiliary_head.num_classes=2"]
    message = fails(capsys, train, trained / "tiny.py", *options)
    assert "auxiliary_head has num_classes=2, train_dataloader has 3 classes (ground, red, green)" in message


def _label_seven(labels):
    labels[5, 5:8] = 7
    return labels


def _in_16_bits(labels):
    labels = labels.astype(np.uint16)
    labels[5, 5] = 256
    return labels


def _in_colours(labels):
    return np.stack([labels] * 3, -1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_label_seven, r"/1.png has label 7 in 3 pixels; labels are 0 to 2 or 255 \(ignored\): correct"),
        (_in_16_bits, r"/1.png has label 256 in 1 pixels"),
        (_in_colours, r"/1.png has 3 channels; a label map has one"),
    ],
)
def test_bad_labels_end_in_one_line(change, message, workers, trained, tmp_path, capsys):
    data = make_data(tmp_path / "data")
    path = data / "labels/train/1.png"
    Image.fromarray(change(np.array(Image.open(path)))).save(path)
    options = [f"train_dataloader.dataset.data_root={data}", f"train_dataloader.num_workers={workers}"]
    found = fails(capsys, train, trained / "tiny.py", "--work-dir", tmp_path, "--cfg-options", *options)
    assert re.search(message, found), found
    assert found.startswith("error: /")


def test_a_broken_image_ends_in_one_line(trained, tmp_path, capsys):
    data = make_data(tmp_path / "data")
    (data / "images/train/2.png").write_bytes(b"no picture")
    options = ["--work-dir", tmp_path, "--cfg-options", f"train_dataloader.dataset.data_root={data}"]
    assert "2.png is not a readable image" in fails(capsys, train, trained / "tiny.py", *options)


# Processes


@pytest.mark.parametrize("script", ["dist_train.sh", "dist_test.sh", "slurm_train.sh", "slurm_test.sh"])
def test_scripts_are_those_of_detection_and_print_their_usage(script):
    path = ROOT / "segmentation" / script
    assert path.read_text() == (ROOT / "detection" / script).read_text()
    result = subprocess.run([str(path)], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("usage: ")


def largest_difference(first: Path, second: Path) -> float:
    first, second = read_state_dict(first), read_state_dict(second)
    assert first.keys() == second.keys()
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)


@pytest.mark.slow
def test_two_processes_train_like_one_and_pass_over_a_damaged_checkpoint_together(trained, tmp_path):
    short = ["train_cfg.max_iters=4", "train_cfg.val_interval=4", "default_hooks.checkpoint.interval=2"]
    options = ["default_hooks.checkpoint.max_keep_ckpts=2", "optim_wrapper.optimizer.lr=1e-3", *short]
    config, one, two = str(trained / "tiny.py"), tmp_path / "one", tmp_path / "two"
    train(SEGMENTATION, [config, "--work-dir", str(one), "--cfg-options", *options])
    arguments = ["--work-dir", str(two), "--cfg-options", "train_dataloader.batch_size=1", *options]
    command = [str(ROOT / "segmentation/dist_train.sh"), "2", config, *arguments]
    options = {"cwd": ROOT / "segmentation", "env": ENVIRONMENT, "check": True, "capture_output": True, "timeout": 600}
    subprocess.run(command, **options)
    assert largest_difference(one / "iter_4.pth", two / "iter_4.pth") < 1e-4
    assert largest_difference(one / "iter_2.pth", one / "iter_4.pth") > 1e-3
    (two / "iter_4.pth").write_bytes((two / "iter_4.pth").read_bytes()[:-100])
    subprocess.run([*command, "--resume"], **options)
    assert "passing over an unreadable checkpoint" in last_log(two)
    assert largest_difference(one / "iter_4.pth", two / "iter_4.pth") < 1e-4


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_weights(trained, tmp_path):
    command = [sys.executable, "segmentation/train.py", str(trained / "tiny.py"), "--work-dir", str(tmp_path)]
    options = ["--cfg-options", "default_hooks.checkpoint.interval=2"]
    process = subprocess.Popen([*command, *options], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "last_checkpoint").is_file():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "iter_80.pth").exists()
    train(SEGMENTATION, [*command[2:], "--resume", *options])
    assert re.search(r"resumed epoch: 0, iter: \d+", last_log(tmp_path))
    assert largest_difference(trained / "run/iter_80.pth", tmp_path / "iter_80.pth") < 1e-6


def test_the_segmentor_of_another_data_set_starts_a_training(trained, tmp_path):
    options = [f"load_from={trained / 'run/iter_80.pth'}", "train_cfg.max_iters=2", "train_cfg.val_interval=2"]
    heads = ["model.decode_head.num_classes=9", "model.auxiliary_head.num_classes=9"]
    arguments = [str(trained / "tiny.py"), "--work-dir", str(tmp_path), "--cfg-options", *options, *heads]
    train(SEGMENTATION, arguments)
    assert "4 entries of other shape, or not in the file, keep initial values: decode_head.conv_seg" in last_log(
        tmp_path
    )
    assert torch.isfinite(read_state_dict(tmp_path / "iter_2.pth")["decode_head.conv_seg.weight"]).all()
