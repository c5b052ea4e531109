"""Everything that is measured on a GPU, in one call of a few minutes; and the report of it, on any machine.

    python benchmarks/gpu.py --out results --budget 480
    python benchmarks/gpu.py --report results --markdown gpu.md --png gpu.png

Phases, in this order: `build` (the CUDA library, and the machine's ceilings), `tests` (pytest -m gpu), `sanitizer`
(memory checks of a program without torch), `operator` (the operator beside other implementations), `ncu` (hardware
counters), `model` (networks beside timm's). Each runs in a process of its own until a deadline, which is its share of
the seconds left, and writes its JSON file after every row, the most valuable rows first. What computes something wrong
is not timed, and is named first. Needs torch, Triton, torchvision, timm, numpy, pytest and a CUDA toolkit; the report
needs matplotlib for --png. No setting of the card is changed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
sys.path.insert(1, str(ROOT / "benchmarks"))

from gpu_phases import report, summary  # noqa: E402
from gpu_phases.journal import Journal, LostDevice, read  # noqa: E402
from gpu_phases.plan import PHASES, Deadline, allot  # noqa: E402

__all__ = ["main", "run_phases"]

_LOST, _RESTARTS = 3, 5


def run_phases(out: Path, budget: float, phases: list[str], options: list[str], restarts: int = _RESTARTS) -> None:
    """Run the phases one after another, each in a process of its own that is ended at its deadline.

    Args:
        out: folder of the JSON files; those of these phases are written anew, others stay.
        budget: seconds for all of them.
        phases: names, in any order.
        options: command-line options for the processes.
        restarts: how often a phase whose process died begins again behind the row at which it died.
    """
    end = Deadline(time.time() + budget - 4)
    out.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in PHASES if name in phases]
    for name in chosen:
        (out / f"{name}.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="ops_dcnv3_gpu_") as work:
        common = [*options, "--out", str(out), "--work", work]
        # Compiles what later phases need, beside the first ones, which leave most processors idle.
        helper = _start(["--worker", "prepare", *common])
        try:
            for index, name in enumerate(chosen):
                seconds = allot(name, chosen[index + 1 :], end.left)
                if seconds is None:
                    Journal(out, name).note(ended=f"left out: {end.left:.0f} s were left")
                    continue
                print(f"\n--- {name}: at most {seconds:.0f} of {end.left:.0f} s", flush=True)
                _run_phase(out, name, Deadline(time.time() + seconds), common, restarts)
                if name == "build" and read(out, name)["rows"].get("library", {}).get("status") != "ok":
                    print("The library is not there, so nothing else is run.", flush=True)
                    break
        finally:
            _stop(helper)


def _run_phase(out: Path, name: str, deadline: Deadline, common: list[str], restarts: int) -> None:
    start, ended = time.time(), "complete"
    for attempt in range(restarts + 1):
        process = _start(["--worker", name, *common, "--until", str(deadline.moment - 3)])
        try:
            code = process.wait(max(deadline.left, 0.1))
        except subprocess.TimeoutExpired:
            code, ended = None, "stopped at its deadline"
        finally:
            _stop(process)
        if code is None or code == 0:
            break
        ended = f"its process ended with code {code} (attempt {attempt + 1})"
        journal = Journal(out, name)  # marks the row at which it died
        journal.write()
        if (code != _LOST and code > 0) or deadline.left < PHASES[name].least:
            break
    Journal(out, name).note(ended=ended, seconds=round(time.time() - start, 1))


def _start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(Path(__file__).resolve()), *arguments], start_new_session=True)


def _stop(process: subprocess.Popen) -> None:
    """End the process with all that it started."""
    for number, patience in ((signal.SIGTERM, 1.5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _work(arguments: argparse.Namespace) -> int:
    """One phase in this process. What imports torch, for seconds, is imported by the phases that need it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that commands which it started end too
    if arguments.worker == "prepare":
        return _prepare(arguments.work)
    journal, until = Journal(arguments.out, arguments.worker), Deadline(arguments.until)
    try:
        if arguments.worker == "tests":
            from gpu_phases import suite

            suite.run(journal, until, arguments.work, ROOT, arguments.out, arguments.test_processes)
        elif arguments.worker in ("sanitizer", "ncu"):
            from gpu_phases import tools

            run = tools.run_sanitizer if arguments.worker == "sanitizer" else tools.run_ncu
            run(journal, until, arguments.work)
        else:
            _measure(journal, until, arguments)
    except LostDevice as error:
        print(f"{arguments.worker}: {error}; going on in a new process", flush=True)
        os._exit(_LOST)  # without destructors, which may hang on a lost device
    except Exception as error:
        journal.note(error=f"{type(error).__name__}: {error}")
        raise
    journal.write()
    return 0


def _measure(journal: Journal, until: Deadline, arguments: argparse.Namespace) -> None:
    """The phases that use torch."""
    import torch

    device = torch.device(arguments.device)
    if arguments.worker == "build":
        from gpu_phases import machine

        return machine.run(journal, until, device)
    if arguments.worker == "model":
        from gpu_phases import model

        return model.run(journal, until, device)
    from gpu_phases import operator

    counts = arguments.work / "static.json"

    def note_counts() -> None:
        journal.note(instructions=json.loads(counts.read_text()) if counts.exists() else [])

    note_counts()
    operator.run(journal, until, device)
    note_counts()  # they may not have been there yet


def _prepare(work: Path) -> int:
    """Compile the program of the phases sanitizer and ncu, and count the kernels' instructions."""
    from gpu_phases import tools

    tools.build_program(work, 120)
    tools.count_instructions(work)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the JSON files")
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything (default 480)")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), help="default: all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: to try the script itself")
    parser.add_argument("--test-processes", type=int, default=4, help="of pytest, if it has pytest-xdist (default 4)")
    parser.add_argument("--report", type=Path, metavar="DIR", help="draw the report of a folder; measures nothing")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="with --report: the file to write")
    parser.add_argument("--png", type=Path, metavar="FILE", help="with --report: the picture to draw")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, or draw a report. Return 1 if anything computes something wrong or could not be run."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.worker:
        return _work(arguments)
    if arguments.report:
        results = report.load(arguments.report)
        if not results:
            parser.error(f"{arguments.report} has no JSON file of a phase; give the folder that was given to --out")
        text = report.markdown(results)
        if arguments.markdown:
            arguments.markdown.write_text(text)
        else:
            print(text)
        if arguments.png:
            from gpu_phases import picture  # needs matplotlib

            picture.plot(results, arguments.png)
        return 0
    if arguments.out is None:
        parser.error("give --out DIR to measure, or --report DIR")
    options = ["--device", arguments.device, "--test-processes", str(arguments.test_processes)]
    run_phases(arguments.out.resolve(), arguments.budget, arguments.phases, options)
    results = report.load(arguments.out)
    print(summary.brief(results), flush=True)
    return 1 if report.complaints(results) else 0


if __name__ == "__main__":
    sys.exit(main())
