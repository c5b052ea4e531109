"""What makes a GPU fast, as far as a CPU can show it: the same results, the same checkpoints."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from tiny_training import TWO_LEVELS, history, make_images, run_here, write_config
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from classification.trainer import optimizer
from classification.trainer.acceleration import place_model, set_tf32
from classification.trainer.distributed import World, wrap_model
from classification.trainer.resume import RunState, restore
from classification.trainer.strategy import Strategy
from internimage import InternImage

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_config(folder / "tiny.yaml", make_images(folder / "data"), {"MODEL": TWO_LEVELS})  # quick to trace


@pytest.fixture(scope="module")
def eager(config_file):
    run_here(config_file, config_file.parent / "eager")
    return config_file.parent / "eager" / "tiny"


@pytest.fixture
def compiled_modes(monkeypatch):
    """Let models be compiled by a backend that takes seconds, not minutes; collects the modes asked for."""
    modes = []

    def compile_fast(self, mode, **settings):
        modes.append(mode)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="aot_eager", **settings)

    monkeypatch.setattr(nn.Module, "compile", compile_fast)
    # Reaching the limit would only be a warning, and a slow run.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield modes
    torch._dynamo.reset()


@pytest.fixture
def process_group():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def fused(monkeypatch):
    monkeypatch.setattr(optimizer, "_on_gpu", lambda groups: True)


def checkpoint(folder, name="ckpt_epoch_1.pth"):
    return torch.load(folder / name, weights_only=True)


def assert_alike(one, other, **tolerance):
    """Two nested states have the same keys and close values."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_alike(one[key], other[key], **tolerance)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, **tolerance)


def test_a_compiled_run_learns_the_same_and_writes_the_same_checkpoints(config_file, tmp_path, compiled_modes):
    options = ["--use-checkpoint", "--accumulation-steps", "2"]
    run_here(config_file, tmp_path / "eager", *options)
    run_here(config_file, tmp_path / "compiled", "--compile", *options)
    assert compiled_modes == ["default", "default"]  # the model and its average
    one, other = (checkpoint(tmp_path / name / "tiny") for name in ("eager", "compiled"))
    for key in ("model", "model_ema", "optimizer"):
        assert_alike(one[key], other[key], rtol=1e-3, atol=1e-4)
    for a, b in zip(*(history(tmp_path / name / "tiny") for name in ("eager", "compiled")), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


@pytest.mark.slow
def test_a_compiled_run_resumes_bit_by_bit(config_file, tmp_path, compiled_modes):
    run_here(config_file, tmp_path, "--compile", "reduce-overhead", "--tag", "whole")
    (tmp_path / "tiny" / "resumed").mkdir()
    first = tmp_path / "tiny" / "whole" / "ckpt_epoch_0.pth"
    (tmp_path / "tiny" / "resumed" / "ckpt_epoch_0.pth").write_bytes(first.read_bytes())
    run_here(config_file, tmp_path, "--compile", "reduce-overhead", "--tag", "resumed")
    assert compiled_modes == ["reduce-overhead"] * 4
    one, other = (checkpoint(tmp_path / "tiny" / name) for name in ("whole", "resumed"))
    for key in ("model", "model_ema", "optimizer"):
        assert_alike(one[key], other[key], rtol=0, atol=0)


def test_a_compiled_model_evaluates_as_the_plain_one(eager, config_file, tmp_path, compiled_modes, capsys):
    run_here(config_file, tmp_path, "--eval", "--resume", str(eager / "ckpt_epoch_1.pth"), "--compile")
    printed, last = capsys.readouterr().out, history(eager)[-1]
    assert f"validation: top-1 {last['top1']:.3f}%" in printed
    assert f"averaged weights: top-1 {last['top1_ema']:.3f}%" in printed
    assert compiled_modes == ["default", "default"]


def test_a_compiled_model_has_the_gradients_of_the_plain_one_inside_ddp(process_group, compiled_modes):
    torch.manual_seed(0)
    plain = InternImage(channels=16, depths=(1, 1), groups=(1, 2), num_classes=4).train()
    compiled = place_model(copy.deepcopy(plain), CPU, "default")
    x = torch.randn(4, 3, 32, 32)
    parallel = wrap_model(World(), compiled)
    for _ in range(2):  # gradients are added up where no process waits for another
        plain(x).square().sum().backward()
        with parallel.no_sync():
            parallel(x).square().sum().backward()
    parallel(x).square().sum().backward(), plain(x).square().sum().backward()
    assert compiled_modes == ["default"] and list(compiled.state_dict()) == list(plain.state_dict())
    for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)


def test_without_the_option_nothing_is_compiled(config_file, tmp_path, compiled_modes):
    run_here(config_file, tmp_path, "--opts", "TRAIN.EPOCHS", "0")
    assert compiled_modes == []


def test_tf32_is_set_for_gpus_without_a_warning_and_left_alone_for_cpus():
    def flags():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()
    try:
        set_tf32(CPU, True)
        assert flags() == before
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for enabled in (True, False):
                set_tf32(torch.device("cuda"), enabled)
                assert flags() == (enabled, enabled)
                assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is enabled
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = before[1]


def test_weights_of_a_model_on_the_cpu_keep_their_layout():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(4, 4))
    assert place_model(model, CPU) is model
    assert model[0].weight.is_contiguous()


def test_a_fused_optimizer_learns_the_same_and_its_runs_can_be_resumed_on_either_side(
    eager, config_file, tmp_path, fused, monkeypatch
):
    def assert_learnt_as_the_plain_one(folder, fused):
        # Figures, not weights: biases before a norm have no gradient but rounding, which Adam scales to full steps.
        for a, b in zip(history(eager)[-1:], history(folder)[-1:], strict=True):
            assert a == pytest.approx(b, abs=1e-3)
        assert {group["fused"] for group in checkpoint(folder)["optimizer"]["param_groups"]} == {fused}

    run_here(config_file, tmp_path, "--tag", "fused")
    assert_learnt_as_the_plain_one(tmp_path / "tiny" / "fused", True)
    for source, name, expected in ((eager, "from_plain", True), (tmp_path / "tiny/fused", "from_fused", None)):
        if expected is None:
            monkeypatch.undo()
        folder = tmp_path / "tiny" / name
        folder.mkdir()
        (folder / "ckpt_epoch_0.pth").write_bytes((source / "ckpt_epoch_0.pth").read_bytes())
        run_here(config_file, tmp_path, "--tag", name)
        assert_learnt_as_the_plain_one(folder, expected)


def run_state(model, build=torch.optim.AdamW, **options):
    strategy = Strategy(World())
    strategy.prepare(model, lambda model: build(model.parameters(), lr=0.1, **options))
    return RunState(strategy, torch.optim.lr_scheduler.StepLR(strategy.optimizer, 1))


def step_once(state):
    torch.manual_seed(0)
    state.strategy.optimizer.zero_grad()
    state.strategy.model(torch.randn(2, 4, 5, 5)).square().sum().backward()
    state.strategy.optimizer.step()


def copy_state(saved, state, path):
    torch.save(saved.strategy.state_dict() | saved.rest(""), path)
    restore(state, path, print)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_restored_states_have_the_layout_of_their_parameters(memory_format, tmp_path):
    other = {torch.channels_last: torch.contiguous_format, torch.contiguous_format: torch.channels_last}
    saved = run_state(nn.Conv2d(4, 8, 3).to(memory_format=other[memory_format]))
    step_once(saved)
    state = run_state(nn.Conv2d(4, 8, 3).to(memory_format=memory_format), fused=True)
    copy_state(saved, state, tmp_path / "x.pth")
    weight, of_saved = state.strategy.model.weight, saved.strategy.optimizer.state[saved.strategy.model.weight]
    for name in ("exp_avg", "exp_avg_sq"):
        value = state.strategy.optimizer.state[weight][name]
        assert value.stride() == weight.stride() != of_saved[name].stride()
        assert torch.equal(value, of_saved[name])
    step_once(saved), step_once(state)
    torch.testing.assert_close(state.strategy.model.weight, saved.strategy.model.weight)


def test_the_state_of_a_sharded_optimizer_is_restored_for_fused_steps(process_group, tmp_path):
    def sharded(parameters, **options):
        return ZeroRedundancyOptimizer(parameters, optimizer_class=torch.optim.AdamW, **options)

    saved = run_state(nn.Conv2d(4, 8, 3), sharded)
    step_once(saved)
    state = run_state(nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last), sharded, fused=True)
    copy_state(saved, state, tmp_path / "x.pth")
    assert all(group["fused"] for group in state.strategy.optimizer.optim.param_groups)
    step_once(saved), step_once(state)
    torch.testing.assert_close(state.strategy.model.weight, saved.strategy.model.weight)


def test_only_gpu_parameters_ask_for_a_fused_step():
    parameters = [nn.Parameter(torch.zeros(1))]
    assert not optimizer._on_gpu([{"params": parameters}])
