"""Loaders of two processes (gloo) against those of one."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from image_folders import configure, make_folder

from classification.data import build_loaders


def samples_by_step(loaders, epoch):
    """For each step, the sorted digests of its (image, label) pairs."""
    loaders.set_epoch(epoch)
    return [sorted(_digests(batch)) for batch in loaders.train]


def _digests(batch):
    return [f"{image.double().sum().item():.6f} {int(label)}" for image, label in zip(*batch)]


def run_process(rank, root, results, opts):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{results}/meeting", rank=rank, world_size=2)
    loaders = build_loaders(configure(root, *opts, batch=4))
    found = {
        "train": [samples_by_step(loaders, epoch) for epoch in (0, 1)],
        "val": [digest for batch in loaders.val for digest in _digests(batch)],
        "kind": type(loaders.train.dataset.samples).__name__,
    }
    Path(results, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.parametrize("in_memory", [False, True])
def test_two_processes_see_what_one_sees_with_twice_the_batch(tmp_path, in_memory):
    root = make_folder(tmp_path / "images", val=5)
    opts = ["DATA.IMG_ON_MEMORY", str(in_memory)]
    left_before = set(Path("/dev/shm").glob("internimage-*"))
    mp.start_processes(run_process, (str(root), str(tmp_path), opts), nprocs=2, start_method="fork")
    two = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    one = build_loaders(configure(root, batch=8))
    for epoch in (0, 1):
        joined = [sorted(a + b) for a, b in zip(*(process["train"][epoch] for process in two))]
        assert joined == samples_by_step(one, epoch)
    assert sorted(two[0]["val"] + two[1]["val"]) == sorted(digest for batch in one.val for digest in _digests(batch))
    assert two[0]["kind"] == ("MemorySamples" if in_memory else "Samples")
    assert set(Path("/dev/shm").glob("internimage-*")) <= left_before
