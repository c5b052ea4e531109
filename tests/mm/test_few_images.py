"""Configurations of own data for few images: `own_data.py --few-images SIZE`."""

import pytest
import tiny_coco
import tiny_scenes
from mmengine.config import Config

import detection.datasets.own_data
import segmentation.datasets.own_data
from internimage.checkpoint import load_file
from internimage.errors import UserError
from internimage.mm import browse
from internimage.mm.runner import DETECTION, SEGMENTATION, train

ROOT = tiny_coco.ROOT
SIZE = 70  # no multiple of 32
IN_ONE_PROCESS = """
report = False
for loader in (train_dataloader, val_dataloader):
    loader.update(num_workers=0, persistent_workers=False)
"""


def write(task, base, data, path, *options):
    """A configuration as the command line writes it; returns its path."""
    halves = {
        "detection": ["--train", "instances.json", "images", "--val", "instances.json", "images"],
        "segmentation": ["--train", "images/train", "labels/train", "--val", "images/val", "labels/val"],
    }
    command = [str(ROOT / task / "configs" / base), "--data-path", str(data), *halves[task], "--output", str(path)]
    module = {"detection": detection, "segmentation": segmentation}[task].datasets.own_data
    module.main([*command, "--few-images", str(SIZE), *options])
    return path


def scales(config, name):
    """Every `scale` and `crop_size` of a pipeline."""
    found = []

    def collect(node):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key in ("scale", "crop_size"):
                found.append(tuple(value))
            elif isinstance(value, dict | list):
                collect(value)

    collect(config[name])
    return found


def trained(task, path, checkpoint, *settings):
    """The number of steps of a short training, whose checkpoint holds an average beside the weights."""
    path.write_text(path.read_text() + IN_ONE_PROCESS)
    work = path.with_suffix("")
    train(task, [str(path), "--work-dir", str(work), "--cfg-options", *settings])
    saved = load_file(work / checkpoint)
    name = "backbone.patch_embed.conv1.weight"
    assert not saved["state_dict"][name].equal(saved["ema_state_dict"][f"module.{name}"])
    return saved["meta"]["iter"]


def test_a_nano_detector_of_boxes_trains_an_average_on_repeated_jittered_images(tmp_path, capsys):
    data = tiny_coco.make_data(tmp_path / "data")
    base = "coco/mask_rcnn_internimage_nano_fpn_1x_coco.py"
    path = write("detection", base, data, tmp_path / "own.py", "--boxes-only")
    browse.main([str(path), "--output", str(tmp_path / "pictures"), "--count", "2"])
    assert "16 training images; 2 of them" in capsys.readouterr().out
    settings = ["train_dataloader.dataset.times=2", "train_cfg.max_epochs=1"]
    assert trained(DETECTION, path, "epoch_1.pth", *settings) == 2 * 4 // 2
    assert Config.fromfile(path, import_custom_modules=False).optim_wrapper.optimizer.lr == 1e-3


def test_a_nano_segmentor_trains_an_average_on_crops_of_that_size(tmp_path):
    data = tiny_scenes.make_data(tmp_path / "data")
    path = write("segmentation", "ade20k/upernet_internimage_nano_512_4k_ade20k.py", data, tmp_path / "own.py")
    settings = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=2"]
    assert trained(SEGMENTATION, path, "iter_2.pth", *settings) == 2
    config = Config.fromfile(path, import_custom_modules=False)
    assert config.model.data_preprocessor.size == (SIZE, SIZE)
    assert scales(config, "train_pipeline") == 2 * [(SIZE, SIZE)] and scales(config, "test_pipeline") == [(SIZE, SIZE)]
    assert [side for side, _ in scales(config, "tta_pipeline")] == [35, 52, 70, 88, 105, 122]  # 0.5 to 1.75


@pytest.mark.parametrize(
    ("task", "base"),
    [
        ("detection", "coco/cascade_internimage_l_fpn_3x_coco.py"),  # has an average of its own
        ("detection", "coco/dino_4scale_cbinternimage_h_objects365_coco_ms.py"),
        ("segmentation", "ade20k/mask2former_internimage_h_896_80k_cocostuff2ade20k_ss.py"),
    ],
)
def test_large_models_get_the_sizes_and_one_hook_of_each_kind(task, base, tmp_path):
    data = {"detection": tiny_coco, "segmentation": tiny_scenes}[task].make_data(tmp_path / "data")
    config = Config.fromfile(write(task, base, data, tmp_path / "own.py"), import_custom_modules=False)
    hooks = [hook.type for hook in config.custom_hooks if hook.type != "NumClassCheckHook"]
    assert hooks == ["EMAHook", "EarlyStoppingHook"]
    assert {*scales(config, "train_pipeline"), *scales(config, "test_pipeline")} == {(SIZE, SIZE)}
    assert [hook.momentum for hook in config.custom_hooks if hook.type == "EMAHook"] == [0.005]


def test_a_size_or_base_that_cannot_be_is_refused(tmp_path, capsys):
    data, halves = tiny_scenes.make_data(tmp_path / "data"), (("images/train", "labels/train"),)
    with pytest.raises(SystemExit, match="2"):
        write("segmentation", "ade20k/any.py", data, tmp_path / "own.py", "--few-images", "8")
    assert "--few-images is the size of the images in pixels, at least 32" in capsys.readouterr().err
    demo = ROOT / "segmentation/configs/demo/upernet_internimage_demo.py"
    with pytest.raises(UserError, match="demo.py resizes in another way than --few-images changes"):
        segmentation.datasets.own_data.own_config(demo, tmp_path / "own.py", data, *halves, few_images=SIZE)
