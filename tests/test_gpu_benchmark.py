"""benchmarks/gpu.py without a GPU: its plan, its files, what it checks, how it goes on after a crash, its report."""

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from gpu_phases import model, networks, operator, plan, report, suite, summary, tools  # noqa: E402
from gpu_phases.journal import Journal, LostDevice, read  # noqa: E402
from gpu_phases.process import command  # noqa: E402

spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
gpu = importlib.util.module_from_spec(spec)
path = list(sys.path)
spec.loader.exec_module(gpu)
sys.path[:] = path

CPU = torch.device("cpu")
SMALL = operator.Case("T", 4, 2, "float16")


def soon() -> plan.Deadline:
    return plan.Deadline(time.time() + 60)


@pytest.mark.parametrize("budget", [480.0, 330.0])
def test_every_phase_gets_a_share_of_the_budget_even_if_all_take_what_they_may(budget):
    names = list(plan.PHASES)
    left, shares = budget, {}
    for index, name in enumerate(names):
        shares[name] = plan.allot(name, names[index + 1 :], left)
        left -= shares[name]
    assert left == pytest.approx(0)
    assert all(shares[name] >= plan.PHASES[name].least for name in names)
    assert shares["operator"] >= 0.15 * budget and shares["model"] >= 0.2 * budget


def test_a_phase_is_left_out_if_too_little_time_remains_and_the_last_takes_all_of_it():
    assert plan.allot("model", [], plan.PHASES["model"].least - 1) is None
    assert plan.allot("model", [], 200.0) == 200.0
    assert plan.allot("ncu", ["model"], 25.0) == plan.PHASES["ncu"].least


def test_rows_have_names_of_their_own_and_the_most_valuable_come_first():
    cases, runs = operator.cases(), list(model.runs())
    assert len({case.name for case in cases}) == len(cases) > 80
    assert len({run.name for run in runs}) == len(runs)
    assert cases[0].name == "T1 N=64 float16 offsets 1 logits kernel"
    assert runs[0].model == "InternImage-T" and runs[0].precision == "bfloat16"
    compiled = [index for index, run in enumerate(runs) if run.mode == "compiled"]
    assert min(compiled) > max(index for index, run in enumerate(runs) if run.task == "profile")


def test_an_exception_in_one_row_is_kept_and_the_next_row_goes_on(tmp_path):
    journal = Journal(tmp_path, "operator")
    with journal.row("first") as row:
        raise ValueError("no such thing")
    with journal.row("second") as row:
        row["value"] = 3
    rows = read(tmp_path, "operator")["rows"]
    assert rows["first"]["status"] == "failed" and "ValueError: no such thing" in rows["first"]["error"]
    assert rows["second"] == {"status": "ok", "value": 3, "seconds": rows["second"]["seconds"]}


def test_a_row_without_enough_time_is_left_out_but_done_if_there_is_time_later(tmp_path):
    journal = Journal(tmp_path, "model")
    with journal.row("slow", soon(), needs=1e6) as row:
        assert row is None
    assert read(tmp_path, "model") is None or journal.data["rows"]["slow"]["status"] == "left out"
    with journal.row("slow", soon(), needs=1) as row:
        row["value"] = 1
    assert read(tmp_path, "model")["rows"]["slow"]["status"] == "ok"


def test_an_error_that_loses_the_gpu_ends_the_process_and_a_new_one_goes_on_behind_the_row(tmp_path):
    journal = Journal(tmp_path, "operator")
    with pytest.raises(LostDevice), journal.row("bad"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    again = Journal(tmp_path, "operator")
    with again.row("bad") as row:
        assert row is None
    assert again.data["rows"]["bad"]["status"] == "failed"


def test_a_right_kernel_is_timed_in_both_directions(tmp_path):
    journal = Journal(tmp_path, "operator")
    operator.run(journal, soon(), CPU, [SMALL, SMALL._replace(dtype="float32", spread=0.0, logits=False)])
    for row in read(tmp_path, "operator")["rows"].values():
        assert row["status"] == "ok", row
        assert set(row["errors"]) == {"output", "grad_input", "grad_offset", "grad_mask"}
        assert row["forward"]["ms"] > 0 and row["backward"]["ms"] > 0


def _scaled(function):
    return lambda *arguments: lambda: function(*arguments)() * 1.01


def _partly_unwritten(function):
    def make(*arguments):
        def call():
            grads = function(*arguments)()
            grads[1][-1, -1, -1, -1] = torch.nan
            return grads

        return call

    return make


@pytest.mark.parametrize(
    ("name", "spoil", "complaint"),
    [("_forward", _scaled, "output 1.0e-02"), ("_backward", _partly_unwritten, "grad_offset nan")],
)
def test_a_wrong_kernel_is_not_timed_and_is_named_first(tmp_path, monkeypatch, name, spoil, complaint):
    monkeypatch.setattr(operator, name, spoil(getattr(operator, name)))
    operator.run(Journal(tmp_path, "operator"), soon(), CPU, [SMALL])
    row = read(tmp_path, "operator")["rows"][SMALL.name]
    assert row["status"] == "wrong" and complaint in row["error"]
    assert "forward" not in row and "backward" not in row
    results = report.load(tmp_path)
    assert report.complaints(results)[0].startswith(f"WRONG operator, {SMALL.name}")
    assert report.markdown(results).splitlines()[2] == "## Wrong or not run"
    assert "**wrong**" in report.markdown(results)


@pytest.mark.parametrize("method", ["torchvision", "grid_sample"])
@pytest.mark.parametrize("logits", [True, False])
def test_the_other_implementations_compute_the_same_function(method, logits):
    case = SMALL._replace(dtype="float32", method=method, logits=logits)
    inputs = operator.make_inputs(case, CPU, 1)
    found = operator.errors(case, inputs, operator._forward(case, inputs, None), None)
    assert found["output"] < 1e-5
    with torch.no_grad():
        assert len(operator._backward(case, inputs, None)()) == 3


def test_networks_are_compared_with_float64_and_then_timed_and_profiled(tmp_path, monkeypatch):
    monkeypatch.setitem(networks.MODELS, "InternImage-T", ("internimage_t_1k_224", 32))
    names = "InternImage-T", "inference", "bfloat16", 1
    chosen = [
        model.Run(*names, optimized=True),
        model.Run("InternImage-T", "training", "bfloat16 autocast", 2),
        model.Run("InternImage-T", "profile", "bfloat16", 1),
    ]
    model.run(Journal(tmp_path, "model"), soon(), CPU, chosen)
    inference, training, profile = read(tmp_path, "model")["rows"].values()
    assert inference["status"] == training["status"] == profile["status"] == "ok", (inference, training, profile)
    assert 1e-4 < inference["error_of_logits"] < 5e-2 and inference["time"]["ms"] > 0
    assert training["error_of_gradient"] < 1e-3 and training["last_loss"] < training["first_loss"]
    assert len(profile["kernels"]) == 25 and any("dcnv3" in kernel["name"] for kernel in profile["kernels"])

    monkeypatch.setitem(model.LIMITS, "bfloat16", 1e-5)
    model.run(Journal(tmp_path, "wrong"), soon(), CPU, chosen[:1])
    (row,) = read(tmp_path, "wrong")["rows"].values()
    assert row["status"] == "wrong" and "time" not in row


def test_bytes_and_floors_are_those_of_the_tensors(tmp_path):
    case = operator.Case("T", 1, 64, "float16")
    moved = operator.bytes_moved(case)
    inputs = operator.make_inputs(case._replace(batch=1), CPU, 0)
    in_and_out = sum(tensor.nbytes for tensor in inputs) * 64  # the output is as large as its gradient
    assert moved["forward"] == in_and_out
    assert moved["backward"] == in_and_out + sum(tensor.nbytes for tensor in inputs[:3]) * 64

    row = {**case._asdict(), "shape": [64, 56, 56, 64], "depth": 16, "bytes": moved}
    floors = report.floors(sample(), row, "forward")
    assert floors["dram"] == pytest.approx(1e3 * moved["forward"] / 3e12)
    assert floors["issue"] == pytest.approx(1e3 * 64 * 56 * 56 * 64 * 100 / 32 / (4 * 132 * 2e9))


def timed(ms: float) -> dict:
    return {"ms": ms, "low": 0.9 * ms, "high": 1.1 * ms, "repeats": 9, "how": "events"}


def sample() -> report.Results:
    """What the phases write on a GPU, shortened."""

    def phase(name: str, rows: dict, **facts) -> dict:
        return {"phase": name, "date": "2030-01-01 12:00", "rows": rows, "ended": "complete", **facts}

    def network(name: str, ms: float, **more) -> dict:
        facts = dict(zip(model.Run._fields, (name, "inference", "bfloat16", 64, "eager", False)))
        return {"status": "ok", **facts, "image": 224, "time": timed(ms), "error_of_logits": 7e-3, **more}

    case = operator.Case("T", 1, 64, "float16")
    kernel = {**case._asdict(), "status": "ok", "shape": [64, 56, 56, 64], "depth": 16, "seed": 1}
    kernel["bytes"] = operator.bytes_moved(case)
    triton = {**kernel, "method": "triton", "forward": timed(0.15)}
    kernel |= {"forward": timed(0.1), "backward": timed(0.4)}
    counts = [
        {
            "direction": "forward",
            "dtype": "float16",
            "points": 9,
            "logits": True,
            "channels": channels,
            "per_element": n,
        }
        for channels, n in ((8, 172), (16, 100), (32, 90))
    ]
    library = {"status": "ok", "load_seconds": 31.0, "chosen": "cuda"}
    ceilings = {"status": "ok", "copy_bytes_per_s": 3e12, "bf16_flop_per_s": 8e14, "clocks_under_load": {}}
    facts = {"torch": "2.11.0", "torch_cuda": "13.0", "nvcc": "nvcc 13.0"}
    facts["nvidia_smi"] = {"name": "Some card", "driver_version": "1.2", "clocks.max.sm": "2000"}
    failure = {"test": "tests/gpu/test_a.py::test_b", "text": "E   assert 1 == 2"}
    profile = {"kernels": [{"name": "forward_kernel", "us": 900.0, "count": 30}], "launches": 471, "total_us": 9000.0}
    return {
        "build": phase(
            "build",
            {"library": library, "card": {"status": "ok", "processors": 132}, "ceilings": ceilings},
            **facts,
        ),
        "tests": phase(
            "tests", {"pytest": {"status": "wrong", "counts": {"passed": 3, "failed": 1}, "failures": [failure]}}
        ),
        "operator": phase("operator", {"a": kernel, "b": triton}, instructions=counts),
        "ncu": phase("ncu", {"float16": {"status": "ok", "kernels": tools.parse_ncu(NCU)}}),
        "model": phase(
            "model",
            {
                "a": network("InternImage-T", 20.0),
                "b": network("ConvNeXt-T", 25.0),
                "c": {"status": "ok", "model": "InternImage-T", "precision": "bfloat16", "batch": 64, **profile},
                "d": {"status": "failed", "error": "Traceback\nMemoryError: no more"},
                "e": {"status": "left out", "error": "45 s were needed, 3 left"},
            },
        ),
    }


NCU = """==PROF== Connected to process 1
"ID","Kernel Name","gpu__time_duration.sum","smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio"
"","","usecond","inst"
"0","forward_kernel<__half, 16, 9, 1>(int)","1,098.5","4.25"
"""


def test_the_report_says_what_is_wrong_first_and_has_times_ratios_and_counters(tmp_path):
    results = sample()
    text = report.markdown(results)
    complaints = text[: text.index("Some card")]
    assert complaints.index("WRONG test tests/gpu/test_a.py::test_b") < complaints.index("MemoryError: no more")
    assert "model: 1 rows were left out" in complaints
    forward = next(line for line in text.splitlines() if line.startswith("| T 1 |"))
    assert "| 100 (90 to 110) |" in forward and "150 (1.5x)" in forward
    assert f"| {0.1 / report.floors(results, results['operator']['rows']['a'], 'forward')['issue']:.2f} |" in forward
    assert "| InternImage-T | inference | bfloat16 | 64 | eager | 224 | 20.00 (18.00 to 22.00) | 3200 | 1.25 |" in text
    assert "| 900 | 10.0 | 30 | `forward_kernel` |" in text
    assert "duration: 1,098.5 usecond" in text and "long_scoreboard 4.25" in text
    brief = summary.brief(results)
    assert "InternImage-T infer bfloat16 N=64 eager: 20.00 ms 3200/s 1.25 of ConvNeXt" in brief
    assert len(brief) < 12_000


def test_the_report_is_drawn_from_the_files_of_any_phases(tmp_path, capsys):
    for name, data in sample().items():
        journal = Journal(tmp_path, name)
        journal.note(**data)
        picture, text = tmp_path / f"{name}.png", tmp_path / f"{name}.md"
        assert gpu.main(["--report", str(tmp_path), "--png", str(picture), "--markdown", str(text)]) == 0
        assert picture.stat().st_size > 1000 and text.read_text().startswith("# Results on a GPU")
    with pytest.raises(SystemExit):
        gpu.main(["--report", str(tmp_path / "nothing")])
    assert "has no JSON file of a phase" in capsys.readouterr().err


def test_results_of_tests_are_kept_one_by_one(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # of the suite that runs this
    folder = tmp_path / "tests" / "gpu"
    folder.mkdir(parents=True)
    (folder / "test_sample.py").write_text(
        textwrap.dedent("""
            import pytest
            pytestmark = pytest.mark.gpu
            def test_right(): pass
            def test_wrong(): assert 1 == 2
            @pytest.mark.skip(reason="a second device is needed")
            def test_skipped(): pass
            def test_broken(nothing): pass
        """)
    )
    here = os.getcwd()
    try:
        suite.run(Journal(tmp_path, "tests"), soon(), tmp_path, tmp_path, tmp_path, 1)
    finally:
        os.chdir(here)
    row = read(tmp_path, "tests")["rows"]["pytest"]
    assert row["counts"] == {"passed": 1, "failed": 1, "skipped": 1, "error": 1}, row
    assert row["status"] == "wrong" and "assert 1 == 2" in row["failures"][0]["text"]
    assert list(row["skipped"]) == ["Skipped: a second device is needed"]
    assert "test_broken" in (tmp_path / "tests.log").read_text()


def test_a_command_is_ended_at_its_limit_with_its_children(tmp_path):
    mark = tmp_path / "mark"
    code, output = command(["sh", "-c", f"echo begun; (sleep 3; touch {mark}) & wait"], 1.0)
    assert (code, output) == (None, "begun\n")
    time.sleep(3)
    assert not mark.exists()


# Stands for a phase: dies at its second row, then hangs at its third.
WORKER = """
import os, sys, time
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from gpu_phases.journal import Journal
journal = Journal(Path(sys.argv[3]), "operator")
for name in ("first", "second", "third", "fourth"):
    with journal.row(name) as row:
        if row is None:
            continue
        if name == "second":
            os.abort()
        if name == "third":
            time.sleep(600)
"""


def test_a_phase_goes_on_behind_a_crash_and_is_stopped_at_its_deadline(tmp_path, monkeypatch):
    def start(arguments):
        code = WORKER if "operator" in arguments else "import time; time.sleep(600)"
        folders = [str(ROOT), str(ROOT / "benchmarks"), str(tmp_path)]
        return subprocess.Popen([sys.executable, "-c", code, *folders], start_new_session=True)

    monkeypatch.setattr(gpu, "_start", start)
    monkeypatch.setitem(gpu.PHASES, "operator", plan.Phase(1, 2))
    monkeypatch.setattr(gpu, "allot", lambda *_: 6.0)
    gpu.run_phases(tmp_path, 30, ["operator"], [])
    data = read(tmp_path, "operator")
    assert data["ended"] == "stopped at its deadline"
    assert [row["status"] for row in data["rows"].values()] == ["ok", "failed", "failed"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_the_program_for_memory_checks_compiles(tmp_path, monkeypatch):
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-Xcicc -O0 -Xptxas -O0")  # not run here, so not optimised
    program = tools.build_program(tmp_path, 300)
    assert program == tmp_path / "memory_check" and os.access(program, os.X_OK)
