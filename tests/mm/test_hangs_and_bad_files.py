"""Hanging workers, pipes and a second run in the same folder raise errors of one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_coco
import tiny_scenes

from internimage.mm.runner import DETECTION, SEGMENTATION, train

STOPPING = """
import os, signal
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

@TRANSFORMS.register_module(force=True)
class StopItself(BaseTransform):
    def transform(self, results):
        os.kill(os.getpid(), signal.SIGSTOP)
        return results
"""


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for task, tiny in (("detection", tiny_coco), ("segmentation", tiny_scenes)):
        folder = tmp_path_factory.mktemp(task)
        made[task] = tiny.make_config(folder, tiny.make_data(folder / "data"))
    return made


def fails(capsys, task, *arguments: object) -> str:
    """Train, which must end with exit code 2; return the one line."""
    with pytest.raises(SystemExit) as stopped:
        train(task, [str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def stopping(configs, folder: Path) -> Path:
    """The segmentor's configuration with the transform of `STOPPING`, in a worker."""
    config = folder / "config.py"
    config.write_text(
        f'_base_ = "{configs["segmentation"]}"\n'
        'custom_imports = dict(imports=["internimage.mm", "segmentation.datasets", "stop_itself"])\n'
        "train_dataloader = dict(num_workers=1, timeout=1, persistent_workers=False,\n"
        "    dataset=dict(pipeline=[dict(type='StopItself'), *_base_.train_pipeline]))\n"
    )
    return config


def test_a_worker_that_hangs_is_named_after_a_while(configs, tmp_path, monkeypatch, capsys):
    (tmp_path / "stop_itself.py").write_text(STOPPING)
    monkeypatch.syspath_prepend(tmp_path)
    message = fails(capsys, SEGMENTATION, stopping(configs, tmp_path), "--work-dir", tmp_path / "run")
    assert "timed out after 1 seconds: no batch came from the loader's processes" in message
    assert "(stopped)" in message and "train_dataloader.timeout=SECONDS" in message


def test_a_worker_that_is_killed_is_explained(configs, tmp_path, monkeypatch, capsys):
    (tmp_path / "stop_itself.py").write_text(STOPPING.replace("SIGSTOP", "SIGKILL"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stop_itself", raising=False)
    message = fails(capsys, SEGMENTATION, stopping(configs, tmp_path), "--work-dir", tmp_path / "run")
    assert "DataLoader worker" in message and "train_dataloader.num_workers ...; start again" in message


@pytest.mark.parametrize(
    ("task", "pipe", "workers"),
    [(SEGMENTATION, "images/train/0.png", 1), (DETECTION, "images/1.png", 0)],
    ids=["segmentation", "detection"],
)
def test_a_pipe_in_the_place_of_a_picture_is_refused(task, pipe, workers, configs, tmp_path, capsys):
    tiny = tiny_coco if task is DETECTION else tiny_scenes
    data = tiny.make_data(tmp_path / "data")
    (data / pipe).unlink()
    os.mkfifo(data / pipe)
    options = [f"train_dataloader.dataset.data_root={data}", f"train_dataloader.num_workers={workers}"]
    message = fails(capsys, task, configs[task.name], "--work-dir", tmp_path / "run", "--cfg-options", *options)
    assert message.startswith(f"error: {data / pipe} is not a file but a pipe")


def test_a_second_run_in_the_same_folder_is_refused_with_the_first_ones_name(configs, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    owner = """
import sys, time
from internimage.runlock import lock_run
lock_run(sys.argv[1])
print("locked", flush=True)
time.sleep(600)
"""
    first = subprocess.Popen([sys.executable, "-c", owner, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "locked\n"
        message = fails(capsys, SEGMENTATION, configs["segmentation"], "--work-dir", tmp_path / "run")
        assert f"another run uses {tmp_path / 'run'}: process {first.pid} on " in message
        assert "started 20" in message
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
