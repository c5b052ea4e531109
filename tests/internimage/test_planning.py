"""The planner against measured memory: every allocation that PyTorch's profiler records while a tiny model trains."""

import json
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

import internimage.__main__ as command
from internimage import InternImage
from internimage.layers import Block
from internimage.planning import STRATEGIES, plan_memory
from internimage.planning.plan import released_name
from internimage.planning.trace import trace_step
from ops_dcnv3.tracing import traced_as

tiny = partial(InternImage, channels=32, depths=[1, 1, 2, 1], groups=[2, 4, 8, 16], num_classes=10)
MODELS = {
    "pre-norm": tiny,
    "post-norm": partial(tiny, layer_scale=1e-5, post_norm=True),
    "H": partial(
        tiny,
        dw_kernel_size=5,
        res_post_norm=True,
        level2_post_norm=True,
        level2_post_norm_block_ids=[1],
        center_feature_scale=True,
        use_clip_projector=True,
    ),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZE = 64


def measured_peak(build: Callable[[], nn.Module], batch: int, amp: str, wrap: Callable = lambda model: model) -> int:
    """The most bytes allocated at once in a step after the first.

    The least of three: threads of gloo free buffers late on a busy machine, which adds a fifth now and then.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = wrap(build().train())
        # As on a GPU: without the temporary tensors of the plain optimizer.
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        images, labels = torch.randn(batch, 3, SIZE, SIZE), torch.zeros(batch, dtype=torch.long)
        for _ in range(4):
            with torch.profiler.record_function("one step"):
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast("cpu", DTYPES[amp], enabled=amp != "fp32"):
                    loss = F.cross_entropy(model(images).float(), labels)
                loss.backward()
                del loss
                optimizer.step()
    now, peaks = 0, []
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "one step":
            peaks.append(now)
        elif event.name() == "[memory]":
            now += event.nbytes()
            if peaks:
                peaks[-1] = max(peaks[-1], now)
    assert len(peaks) == 4
    return min(peaks[1:])


def sharded(model: nn.Module, amp: str) -> nn.Module:
    """As classification/train.py --shard fsdp."""
    half = MixedPrecisionPolicy(DTYPES[amp], torch.float32, cast_forward_inputs=False)
    for kind, policy in ((nn.BatchNorm2d, MixedPrecisionPolicy()), (Block, half)):
        for module in model.modules():
            if isinstance(module, kind):
                fully_shard(module, mp_policy=policy)
    return fully_shard(model, mp_policy=half)


@pytest.mark.parametrize(
    ("model", "amp", "checkpointing"),
    [("pre-norm", "fp32", False), ("post-norm", "bf16", False), ("H", "bf16", True)],
)
def test_the_peak_of_one_process_is_planned_within_a_tenth(model, amp, checkpointing):
    plan = plan_memory(MODELS[model], batch=8, size=SIZE, amp=amp, use_checkpoint=checkpointing, device="cpu")
    measured = measured_peak(partial(MODELS[model], with_cp=checkpointing), 8, amp)
    assert plan.peak == pytest.approx(measured, rel=0.1)


@pytest.fixture
def processes(request):
    """A process group of a backend; yields the number of its processes, of which this is one.

    The collectives of `fake` move nothing; FSDP allocates as always. With gloo, whose threads free buffers late, two
    processes on a busy machine measured a fifth more in some steps.
    """
    backend, count = request.param
    store = FakeStore() if backend == "fake" else dist.HashStore()
    dist.init_process_group(backend, store=store, rank=0, world_size=count)
    yield count
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [("gloo", 1)], indirect=True)
def test_the_buckets_of_ddp_are_planned(processes):
    plan = plan_memory(tiny, batch=8, size=SIZE, gpus=2, device="cpu")  # their size does not depend on the number
    assert plan.peak == pytest.approx(measured_peak(tiny, 8, "bf16", DistributedDataParallel), rel=0.1)


@pytest.mark.parametrize("processes", [("fake", 8)], indirect=True)
def test_the_peak_of_one_of_eight_sharded_processes_is_planned_within_a_tenth(processes):
    plan = plan_memory(tiny, batch=8, size=SIZE, strategy="fsdp", gpus=processes, device="cpu")
    assert plan.peak == pytest.approx(measured_peak(tiny, 8, "bf16", partial(sharded, amp="bf16")), rel=0.1)


def test_torchs_own_tracker_counts_the_same_bytes():
    traced = trace_step(tiny, 2, SIZE)
    tracker = MemTracker()
    with traced_as("cuda"), FakeTensorMode():
        model = tiny().train()
        images, labels = torch.empty(2, 3, SIZE, SIZE), torch.empty(2, dtype=torch.long)
        tracker.track_external(model, images, labels)
        with tracker:
            F.cross_entropy(model(images), labels).backward()
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    assert snapshot["Total"] == traced.at_peak.total()


def test_a_step_of_t_is_planned_as_measured_on_an_h200():
    measured = 5_460_506_112  # docs/gpu/2026-11-27_h200/model.json: bfloat16 autocast, AdamW, 64 images, eager
    assert plan_memory("internimage_t_1k_224", batch=64).peak == pytest.approx(measured, rel=0.05)  # 2% less


@pytest.fixture(scope="module")
def plans():
    """Of every strategy, on 8 GPUs."""
    build = partial(tiny, depths=[1, 1], groups=[2, 4])
    return {name: plan_memory(build, batch=2, size=SIZE, strategy=name, gpus=8, ema=True) for name in STRATEGIES}


def test_what_is_shared_out_is_an_eighth(plans):
    count = plans["ddp"].parameters
    update = {name: plan.update for name, plan in plans.items()}
    assert update["ddp"]["optimizer"] == 8 * count
    assert update["ddp"]["gradients"] == update["ddp"]["averaged weights"] == 4 * count
    assert update["fsdp"]["optimizer"] == pytest.approx(count, rel=0.02)  # a few rows that 8 does not divide
    assert update["fsdp"]["averaged weights"] == pytest.approx(count / 2, rel=0.02)
    assert update["zero1"]["optimizer"] == pytest.approx(12 * count / 8, rel=0.02)
    assert update["zero"]["optimizer"] >= count  # whole tensors
    for name in ("fsdp_offload", "zero3_offload"):
        assert "weights" not in update[name] and plans[name].host["optimizer"] > 0


def test_what_a_gpu_sends_follows_from_the_collectives(plans):
    count = plans["ddp"].parameters
    total = {name: sum(plan.sent.values()) / (7 / 8 * count) for name, plan in plans.items()}
    assert total["ddp"] == pytest.approx(8)  # reduce-scatter and all-gather of float32
    assert total["zero"] == pytest.approx(12)
    assert total["zero1"] == total["zero2"] == pytest.approx(4)
    assert total["zero3"] == pytest.approx(6)
    assert 6 < total["fsdp"] < 8  # what is outside of blocks is gathered once


def test_the_processes_of_zero_hold_whole_tensors_so_that_one_may_hold_most():
    plan = plan_memory("internimage_t_1k_224", batch=2, size=32, strategy="zero", gpus=64)
    largest = 8 * 512 * 2048  # two float32 moments of a matrix of the last level's MLP
    assert plan.update["optimizer"] >= largest > 8 * plan.parameters / 64


def test_a_name_without_the_data_of_pretraining_is_the_released_one():
    assert released_name("internimage_g_1k_512") == "internimage_g_22kto1k_512"
    assert released_name("internimage_t_1k_224") == "internimage_t_1k_224"


def test_the_command_prints_a_table_and_the_same_bytes_as_json(capsys):
    arguments = ["memory", "internimage_t_1k_224", "--batch", "2", "--size", "32", "--strategy", "fsdp", "--gpus", "64"]
    command.main(arguments)
    printed = capsys.readouterr().out
    command.main([*arguments, "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert f"peak: {plan['peak'] / 2**30:.2f} GiB" in printed
    assert plan["peak"] == max(sum(plan["backward"].values()), sum(plan["update"].values()))
    assert all(name in printed for name in (*plan["backward"], *plan["sent"]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["internimage_t_1k_224", "--batch", "-1"], "batch must be"),
        (["internimage_t_1k_224", "--batch", "1", "--gpus", "0"], "gpus must be"),
        (["internimage_t_1k_224", "--batch", "1", "--size", "100"], "size must be a positive multiple of 32"),
        (["internimage_t_1k_224", "--batch", "1", "--strategy", "zero9"], "strategy must be one of ddp, zero, fsdp"),
        (["internimage_t_1k_224", "--batch", "1", "--size", "32"], "cannot train on 1 images of 32x32 pixels"),
        (["internimage_t_1k_225", "--batch", "1"], "did you mean internimage_t_1k_224"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit_info:
        command.main(["memory", *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert exit_info.value.code == 2
    assert len(lines) == 1 and words in lines[0]
