"""torchrun's agents, on one machine and two, through restarts after a failure and preemption.

The agents and the trainings are forked from the test, which saves seconds of imports; `dist_train.sh` gives torchrun
the same settings (`tests/test_launchers.py`).
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from functools import partial

import pytest
import torch
from test_resume_training import assert_same_files
from tiny_training import history, make_images, write_config
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from classification import train
from classification.trainer.resume import list_checkpoints
from classification.trainer.tracking import Tracker
from internimage import peers, preemption


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    changes = {"TRAIN": {"EPOCHS": 2}, "PRINT_FREQ": 1}
    return write_config(folder / "tiny.yaml", make_images(folder / "data"), changes)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(preemption, "_OTHERS_NEED", 1)
    monkeypatch.setattr(peers, "_LAUNCHER", 0)
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # as in dist_train.sh


def begin(config, output, at=lambda line: None, *, machines=1, restarts=0):
    """Start the agents of a training with two processes; `at` is called in each process with the lines of the log."""
    output.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = partial(
        LaunchConfig,
        min_nodes=machines,
        max_nodes=machines,
        nproc_per_node=2 // machines,
        run_id=str(port),
        rdzv_backend="c10d" if restarts else "static",
        rdzv_endpoint=f"127.0.0.1:{port}",
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method="fork",
        shutdown_timeout=8,  # one that the agent forked sometimes waits for the agent when it exits
    )

    def work():
        torch.set_num_threads(1)
        log = Tracker.log

        def log_and_call(self, text):
            log(self, text)
            at(text)

        Tracker.log = log_and_call
        train.main(["--cfg", str(config), "--output", str(output), "--batch-size", "4"])

    def agent(number):
        with open(output / f"printed by agent {number}", "w", buffering=1) as printed:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            sys.stdout = sys.stderr = printed
            elastic_launch(launch(rdzv_configs={"rank": number}), work)()

    agents = [multiprocessing.get_context("fork").Process(target=agent, args=(n,)) for n in range(machines)]
    for each in agents:
        each.start()
    return agents


def end(agents):
    for each in agents:
        each.join(90)
        each.kill()
    return [each.exitcode for each in agents]


@pytest.fixture(scope="module")
def whole(config):
    """The folder of a run that nothing disturbs."""
    assert end(begin(config, config.parent / "whole")) == [0]
    return config.parent / "whole" / "tiny"


def assert_same_end(run, whole):
    assert_same_files(run, whole, "ckpt_epoch_1.pth")
    assert history(run) == history(whole)


def test_torchrun_restarts_a_run_that_lost_a_process_and_it_ends_the_same(config, whole, tmp_path):
    def kill_one(line):
        if line.startswith("epoch 1/2 step 3/8") and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(victim(), signal.SIGKILL)

    def victim():
        """The other process: a child of the same agent."""
        with open(f"/proc/{os.getppid()}/task/{os.getppid()}/children") as children:
            return next(int(child) for child in children.read().split() if int(child) != os.getpid())

    assert end(begin(config, tmp_path / "run", kill_one, restarts=1)) == [0]
    printed = (tmp_path / "run/printed by agent 0").read_text()
    assert printed.count("process 1 of 2 (") == printed.count("ended without a word") == 1
    assert f"resumed from {tmp_path}/run/tiny/ckpt_epoch_0.pth" in printed
    assert_same_end(tmp_path / "run/tiny", whole)


def test_two_machines_that_are_preempted_save_one_checkpoint_and_go_on(config, whole, tmp_path):
    here, there = multiprocessing.get_context("fork").Pipe()

    def tell(line):
        if line.startswith("epoch 1/2 step 2/8"):
            there.send(line)
        if line.startswith("epoch 1/2 step"):
            time.sleep(0.1)  # until the signal is there

    agents = begin(config, tmp_path / "run", tell, machines=2)
    assert here.poll(60)
    for agent in agents:
        os.kill(agent.pid, signal.SIGTERM)
        time.sleep(1)  # the scheduler does not reach both at once
    assert 0 not in end(agents)
    printed = "".join(path.read_text() for path in (tmp_path / "run").glob("printed*"))
    assert printed.count("start again to resume") == 1 and "error: process" not in printed
    saved = [path.name for path in list_checkpoints(tmp_path / "run/tiny")]
    assert saved[0].startswith("ckpt_epoch_1_step_") and saved[1:] == ["ckpt_epoch_0.pth"]
    assert end(begin(config, tmp_path / "run", machines=2)) == [0, 0]
    assert_same_end(tmp_path / "run/tiny", whole)
