"""A loss or gradient that is not finite: the update is left out in all processes, and after some the run stops."""

import pytest
import torch
import yaml
from tiny_training import history, make_images, run_here, two_processes, user_error, write_config
from torch import nn

from classification.config import get_config, parse_args
from classification.models import build_model
from classification.trainer import engine
from classification.trainer.distributed import World
from classification.trainer.strategy import Strategy


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    changes = {"TRAIN": {"EPOCHS": 2, "MAX_BAD_UPDATES": 3}, "PRINT_FREQ": 2}
    return write_config(folder / "tiny.yaml", make_images(folder / "data"), changes)


@pytest.fixture
def spoil(monkeypatch):
    """Make images of some training steps NaN, in the last process."""
    to_device, seed_everything = engine.to_device, engine.seed_everything
    now = []

    def note(device, *numbers):
        now[:] = numbers[1:]
        seed_everything(device, *numbers)

    def spoil(*steps, size=1):
        def spoilt(batch, device):
            (images, *rest), target = to_device(batch, device)
            if now in [[*step, size - 1] for step in steps]:
                images[0] = float("nan")
            return (images, *rest), target

        monkeypatch.setattr(engine, "seed_everything", note)
        monkeypatch.setattr(engine, "to_device", spoilt)

    return spoil


def load(path):
    return torch.load(path, weights_only=True)


def test_a_bad_batch_changes_neither_weights_nor_statistics_and_is_counted(config, spoil, tmp_path, monkeypatch):
    spoil((0, 3), (0, 4), (1, 2))
    update, seen = Strategy.update, []

    def watch(self, max_norm):
        before = {key: value.clone() for key, value in self.model.state_dict().items() if "running" not in key}
        norm = update(self, max_norm)
        seen.append((bool(norm.isfinite()), all(torch.equal(before[k], self.model.state_dict()[k]) for k in before)))
        return norm

    monkeypatch.setattr(Strategy, "update", watch)
    run_here(config, tmp_path)
    assert [number for number, (finite, same) in enumerate(seen) if not finite and same] == [3, 4, 10]
    assert not any(same for finite, same in seen if finite)
    state = load(tmp_path / "tiny/ckpt_epoch_1.pth")
    assert all(value.isfinite().all() for part in ("model", "model_ema") for value in state[part].values())
    assert all(value["step"] == 13 for value in state["optimizer"]["state"].values())
    log = (tmp_path / "tiny/log.txt").read_text()
    assert "not finite: 2 of 8" in log and "not finite: 1 of 8" in log
    assert all(record["train_loss"] < 2 for record in history(tmp_path / "tiny"))


def test_two_processes_agree_and_stop_after_three_in_a_row_with_the_batch(config, spoil, tmp_path):
    spoil((0, 1), (1, 2), (1, 3), (1, 4), (1, 5), size=2)
    arguments = ("--cfg", str(config), "--batch-size", "4", "--output", str(tmp_path))
    results = two_processes(tmp_path, *arguments)
    assert [code for code, _ in results] == [2, 2]
    said = [line for _, printed in results for line in printed.splitlines() if line.startswith("error: ")]
    name = "bad_batch_epoch_1_step_5_rank_0.pt"
    assert len(said) == 1 and "4 updates in a row" in said[0] and str(tmp_path / "tiny" / name) in said[0]
    assert "not finite: 1 of 8" in results[0][1]
    first, second = (load(tmp_path / "tiny" / name.replace("rank_0", f"rank_{rank}")) for rank in (0, 1))
    assert first["loss"] < 2 and second["loss"] != second["loss"] and second["seed"] == [0, 1, 5, 1]
    assert second["inputs"][0][0].isnan().all() and not set(first["indices"]) & set(second["indices"])
    # The step can be replayed.
    (tmp_path / "used.yaml").write_text(first["config"])
    used = get_config(parse_args(["--cfg", str(tmp_path / "used.yaml")]))
    model = build_model(used, 4).train()
    model.load_state_dict(first["model"])
    engine.seed_everything(torch.device("cpu"), *first["seed"])
    with torch.no_grad():
        loss = nn.CrossEntropyLoss()(model(*first["inputs"]), first["targets"])
    assert float(loss) != float("nan")
    torch.testing.assert_close(float(loss), first["loss"], rtol=1e-6, atol=0)
    assert yaml.safe_load(first["config"])["SEED"] == first["seed"][0]


def test_one_process_says_in_one_line_where_the_batch_is(config, spoil, tmp_path, capsys):
    spoil((0, 0), (0, 1), (0, 2), (0, 3))
    with user_error(capsys, "4 updates in a row", "bad_batch_epoch_0_step_3_rank_0.pt", "TRAIN.BASE_LR"):
        run_here(config, tmp_path)


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimizer_does_not_count_an_update_left_out(fused):
    strategy = Strategy(World())
    strategy.prepare(nn.Linear(2, 2), lambda model: torch.optim.AdamW(model.parameters(), fused=fused))
    for value in (1.0, float("nan"), float("inf"), 1.0):
        before = strategy.model.weight.clone()
        strategy.optimizer.zero_grad()
        strategy.backward(strategy.network(torch.full((1, 2), value)).sum())
        strategy.update(5.0)
        assert torch.equal(before, strategy.model.weight) == (value != 1.0)
    assert [float(state["step"]) for state in strategy.optimizer.state.values()] == [2.0, 2.0]


def test_a_process_to_which_zero_gives_no_parameter_of_the_first_group_updates():
    strategy = Strategy(World())
    empty = {"params": []}
    strategy.prepare(nn.Linear(2, 2), lambda model: torch.optim.SGD([empty, {"params": model.parameters()}], lr=0.1))
    before = strategy.model.weight.clone()
    strategy.backward(strategy.network(torch.ones(1, 2)).sum())
    strategy.update(5.0)
    assert not torch.equal(before, strategy.model.weight)
