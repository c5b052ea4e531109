"""Phase `tests`: pytest -m gpu, every result kept as it comes; this file is also the pytest plugin that keeps them."""

import importlib.util
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from .journal import Journal
from .plan import Deadline
from .process import command

__all__ = ["pytest_runtest_logreport", "run", "summarise"]

_RESULTS = "DCNV3_GPU_TEST_RESULTS"


def pytest_runtest_logreport(report) -> None:
    """Append the outcome of a test to the file that the environment names. Called by pytest."""
    path = os.environ.get(_RESULTS)
    if not path or "PYTEST_XDIST_WORKER" in os.environ:  # the process that started the workers hears of all tests
        return
    if report.when == "call" or report.outcome != "passed":
        text = report.longreprtext if report.failed else ""
        reason = str(report.longrepr[2]) if report.skipped and isinstance(report.longrepr, tuple) else ""
        line = {
            "test": report.nodeid,
            "outcome": "error" if report.failed and report.when != "call" else report.outcome,
            "seconds": round(report.duration, 2),
            "text": (text or reason)[-1500:],
        }
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


def run(journal: Journal, deadline: Deadline, work: Path, root: Path, folder: Path, processes: int) -> None:
    """Run the tests until the deadline; `folder` receives tests.log."""
    with journal.row("pytest") as row:
        if row is None:
            return
        results = work / "tests.jsonl"
        results.unlink(missing_ok=True)
        arguments = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-v", "--tb=short", "-o", "addopts="]
        arguments += ["-p", "gpu_phases.suite", "-p", "no:cacheprovider", "--color=no"]
        if processes > 1 and importlib.util.find_spec("xdist"):
            arguments += ["-n", str(processes), "--dist", "worksteal"]
        paths = [str(root), str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        # The suite's own settings switch CUDA off where nothing is said.
        environment = {
            "OPS_DCNV3_NO_CUDA": "0",
            _RESULTS: str(results),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        start, limit = time.time(), deadline.left - 2
        os.chdir(root)
        code, output = command(arguments, limit, environment)
        (folder / "tests.log").write_text(output[-4_000_000:])
        lines = results.read_text().splitlines() if results.exists() else []
        row.update(command=" ".join(arguments[1:]), code=code, wall=round(time.time() - start, 1))
        row.update(summarise([json.loads(line) for line in lines if line.endswith("}")]))
        if row["failures"]:
            row.update(status="wrong", error=f"{len(row['failures'])} tests failed")
        elif code is None:
            row.update(status="failed", error=f"ended after {limit:.0f} s, its time limit; the tests so far passed")
        elif code:
            row.update(status="failed", error=f"pytest ended with code {code}: {output.strip()[-800:]}")


def summarise(results: list[dict]) -> dict:
    """Counts of outcomes, failures with their tracebacks, reasons for skipping, the slowest tests."""
    return {
        "counts": dict(Counter(result["outcome"] for result in results)),
        "failures": [result for result in results if result["outcome"] in ("failed", "error")][:60],
        "skipped": dict(Counter(result["text"] for result in results if result["outcome"] == "skipped")),
        "slowest": sorted(([r["seconds"], r["test"]] for r in results), reverse=True)[:12],
    }
