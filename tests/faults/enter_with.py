"""Give checkpoints to every entry point of a task, each in a child of its own; print what became of each as JSON.

python enter_with.py TASK FOLDER CHECKPOINT...
"""

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from in_children import in_child

TESTS = Path(__file__).resolve().parents[1]

Entries = dict[str, Callable[[], object]]


def classification(folder: Path) -> Callable[[str], Entries]:
    from tiny_training import make_images, write_config

    from classification import export, extract_feature, predict, train

    config = str(write_config(folder / "tiny.yaml", make_images(folder / "data")))
    image = str(next((folder / "data").rglob("*.png")))

    def continue_run(path: str) -> None:
        output = folder / f"run of {Path(path).stem}"
        (output / "tiny").mkdir(parents=True)
        shutil.copy(path, output / "tiny/ckpt_epoch_0.pth")
        train.main(["--cfg", config, "--output", str(output)])

    def entries(path: str) -> Entries:
        start = ["--cfg", config, "--output", str(folder / "out")]
        model = ["--cfg", config, "--checkpoint", path]
        return {
            "train --resume": lambda: train.main([*start, "--resume", path]),
            "train --pretrained": lambda: train.main([*start, "--pretrained", path]),
            "train --eval": lambda: train.main([*start, "--eval", "--resume", path]),
            "train, started again": lambda: continue_run(path),
            "predict": lambda: predict.main([*model, "--image", image]),
            "export": lambda: export.main([*model, "--output", str(folder / "x.onnx")]),
            "extract_feature": lambda: extract_feature.main(
                [*model, "--image", image, "--output", str(folder / "x.pt"), "--layers", "head"]
            ),
        }

    return entries


def openmmlab(task: str, config: Path, image: Path, part: str, latest: str) -> Callable[[str], Entries]:
    from internimage.mm import runner
    from internimage.mm.demo import image_demo
    from quick_mmengine import make_quick

    make_quick()

    kind = getattr(runner, task.upper())
    exporter = importlib.import_module(f"{task}.export")
    folder = config.parent

    def continue_run(path: str) -> None:
        run = folder / f"run of {Path(path).stem}"
        run.mkdir(exist_ok=True)
        shutil.copy(path, run / latest)
        (run / "last_checkpoint").write_text(str(run / latest))
        runner.train(kind, [str(config), "--work-dir", str(run), "--resume"])

    def entries(path: str) -> Entries:
        work = ["--work-dir", str(folder / "work")]
        train, test = partial(runner.train, kind), partial(runner.test, kind)

        def initialised(name: str) -> list[str]:
            option = f"model.{name}.init_cfg"
            return ["--cfg-options", f"{option}.type=Pretrained", f"{option}.checkpoint={path}"]

        return {
            "train --resume": lambda: train([str(config), *work, "--resume", path]),
            "train, started again": lambda: continue_run(path),
            "train from load_from": lambda: train([str(config), *work, "--cfg-options", f"load_from={path}"]),
            "train from a backbone's file": lambda: train([str(config), *work, *initialised("backbone")]),
            "train from a part's file": lambda: train([str(config), *work, *initialised(part)]),
            "test": lambda: test([str(config), path, *work]),
            "image_demo": lambda: image_demo(kind, [str(image), str(config), path, "--out", str(folder / "x.png")]),
            "export": lambda: exporter.main([str(config), "--checkpoint", path, "--output", str(folder / "x.onnx")]),
        }

    return entries


def detection(folder: Path) -> Callable[[str], Entries]:
    from tiny_coco import make_config, make_data

    import detection.models  # noqa: F401 - before mmdet

    data = make_data(folder / "data")
    config = make_config(folder, data)
    return openmmlab("detection", config, data / "images/0.png", "neck", "epoch_1.pth")


def segmentation(folder: Path) -> Callable[[str], Entries]:
    from tiny_scenes import make_config, make_data

    import segmentation.models  # noqa: F401 - before mmseg

    data = make_data(folder / "data")
    config = make_config(folder, data)
    return openmmlab("segmentation", config, data / "images/val/0.png", "decode_head", "iter_2.pth")


if __name__ == "__main__":
    task, folder = sys.argv[1], Path(sys.argv[2])
    sys.path += [str(TESTS), str(TESTS / task)]
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    entries = globals()[task](folder)
    results = {}
    for path in sys.argv[3:]:
        for entry, run in entries(path).items():
            results[f"{entry}, {Path(path).stem}"] = in_child(run)
    print(json.dumps(results))
