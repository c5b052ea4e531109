"""Checkpoints with numbers of numpy are read; forged ones are refused by every entry point.

They are given in processes of their own, so that a crash fails a test and not the suite. `table.py` has the kinds of
forgery, each of which every reader must refuse.
"""

import pickle
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forged import write
from in_children import ENVIRONMENT, ROOT, results_of
from mmengine.logging import HistoryBuffer

import internimage.mm  # noqa: F401 - lets mmengine's own loader read through ours
from internimage.checkpoint import load_file


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_every_entry_point_refuses_forged_checkpoints(task, tmp_path):
    content = {"state_dict": {"w": torch.ones(1)}, "model": {"w": torch.ones(1)}, "epoch": 0}
    path = write("array of a float with object fields", tmp_path / "forged.pth", content)
    results = results_of("enter_with.py", task, tmp_path / "work", path)
    assert len(results) == (7 if task == "classification" else 8)
    for entry, (code, line) in results.items():
        assert code == 2 and line.startswith("error: "), (entry, code, line)
        assert re.search(r"forged\.pth.*not loaded for safety|none of the 1 checkpoints", line), (entry, line)


def test_numbers_of_numpy_are_read_and_saved_again_as_numpys(tmp_path):
    values = {
        "array": np.arange(6.0).reshape(2, 3).T,
        "integers": np.arange(3, dtype=">i4"),
        "flags": np.array([True, False]),
        "no dimension": np.array(2.5),
        "scalar": np.float32(1.5),
        "count": np.int64(7),
    }
    for _ in range(2):
        torch.save(values, tmp_path / "x.pth")
        values = load_file(tmp_path / "x.pth")
    assert values["array"].tolist() == [[0, 3], [1, 4], [2, 5]] and values["integers"].tolist() == [0, 1, 2]
    assert values["flags"].tolist() == [True, False] and values["no dimension"] == 2.5
    assert values["scalar"] == np.float32(1.5) and values["scalar"].dtype == np.float32 and values["count"] == 7
    assert b"internimage" not in (tmp_path / "x.pth").read_bytes()


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_a_log_history_of_numpy_1_or_2_is_read_as_mmengines(core, tmp_path):
    own = np.float64(0).__reduce__()[0].__module__  # of this numpy

    class Naming(pickle._Pickler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            write = self.write
            self.write = lambda data: write(data.replace(own.encode(), f"{core}.multiarray".encode()))

    history = HistoryBuffer([1.0, 2.0, 6.0], [1, 1, 1], max_length=9)
    torch.save({"log": history}, tmp_path / "x.pth", pickle_module=SimpleNamespace(Pickler=Naming, __name__="naming"))
    assert f"{core}.multiarray".encode() in (tmp_path / "x.pth").read_bytes()
    read = load_file(tmp_path / "x.pth")["log"]
    assert type(read) is HistoryBuffer and read.max_length == 9
    assert [type(values) for values in read.data] == [np.ndarray, np.ndarray]
    assert read.data[0].tolist() == [1, 2, 6] and read.statistics("mean", 2) == 4 and read.statistics("max") == 6
    read.update(5.0)
    assert read.current() == 5


def test_a_training_file_of_mmengine_is_read_where_mmengine_is_not(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {"message_hub": {"log_scalars": {"loss": history}}, "state_dict": {"w": torch.ones(1)}}
    torch.save(content, tmp_path / "x.pth")
    code = (
        "import sys; from internimage.checkpoint import read_state_dict\n"
        f"assert read_state_dict({str(tmp_path / 'x.pth')!r})['w'].item() == 1 and 'mmengine' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, check=True)
