"""The faults outside the suite: print their table, or run the long form.

    python tests/faults --markdown
    python tests/faults [--kills 20] [--mutations 5000] [--cases 50000] [--only random ...] [--seed 0]

The long form runs every check of the table, kills trainings of each task in one process and two at random moments,
changes files at random and runs random operator calls under sanitizers. It takes an hour or two on two cores, shows its
progress, and ends with the table and exit code 1 if anything failed. What it did is in the folder that it names.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from kills import RUNS, TASKS, kill_often  # noqa: E402 - after the path
from mutations import TARGETS, mutate_often  # noqa: E402
from sanitized import run_operator_cases  # noqa: E402
from table import FAULTS, markdown  # noqa: E402

PARTS = ("table", "kills", "mutations", "cases")


class Report:
    """Lines of progress, and what became of each check."""

    def __init__(self) -> None:
        self.results: dict[str, str] = {}
        self.rows: list[tuple[str, str]] = []
        self.failed = False

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def attempt(self, name: str, work: Callable[[], str | None], *, in_table: bool = False) -> None:
        """Run a check; it fails by an exception, and may return words for the last table."""
        try:
            result = work() or "passed"
        except Exception as error:
            self.failed = True
            traceback.print_exc()
            result = f"**failed**: {type(error).__name__}"
        if in_table:
            self.results[name] = result
        else:
            self.rows.append((name, result))
        self.say(f"{name}: {result}")


def _mutations(target: str, count: int, seed: int, folder: Path, say: Callable[[str], None]) -> str:
    def report(done: int) -> None:
        if done % 500 == 0:
            say(f"{target}: {done} of {count} files")

    mutate_often(target, count, folder, seed=seed, report=report)
    return f"{count} files, no traceback, no silent difference"


def _cases(count: int, seed: int, say: Callable[[str], None]) -> str:
    part = max(count // 10, 1)
    for done in range(0, count, part):
        finished = run_operator_cases(min(part, count - done), seed + done, vectors=True)
        if finished.returncode:
            raise RuntimeError(finished.stderr[-3000:])
        say(f"operator: {min(done + part, count)} of {count} calls")
    return f"{count} calls, no report"


def _kills(
    task: str, processes: int, mode: str, args: argparse.Namespace, folder: Path, say: Callable[[str], None]
) -> str:
    survived = 0
    outcomes = kill_often(task, processes, mode, args.kills, folder, args.seed, say)
    for number, (what, good) in enumerate(outcomes, 1):
        say(f"{task}, {processes} processes {mode}, {number} of {args.kills}: {what}")
        survived += good
    if survived < args.kills:
        raise RuntimeError(f"{args.kills - survived} of {args.kills} runs did not end as the undisturbed one")
    return f"{survived} of {args.kills} bit-equal"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--markdown", action="store_true", help="print the table and exit")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts of the long form")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="whose trainings are killed")
    parser.add_argument("--kills", type=int, default=20, help="for each task, number of processes and mode")
    parser.add_argument("--mutations", type=int, default=5000, help="files in all")
    parser.add_argument("--cases", type=int, default=50_000, help="calls of the operator")
    parser.add_argument("--seed", type=int, default=0, help="of moments, changes and calls")
    args = parser.parse_args()
    if args.markdown:
        print(markdown())
        return
    folder = Path(tempfile.mkdtemp(prefix="faults_"))
    report = Report()
    report.say(f"files of this run are in {folder}")
    if "table" in args.only:
        for number, fault in enumerate(fault for fault in FAULTS if fault.check):
            own = folder / f"check{number}"
            own.mkdir()
            report.attempt(fault.name, lambda: fault.check(own), in_table=True)  # noqa: B023 - called at once
    if "mutations" in args.only:
        for target in TARGETS:
            count = args.mutations // len(TARGETS)
            report.attempt(
                f"random changes: {target}, long form",
                lambda: _mutations(target, count, args.seed, folder, report.say),  # noqa: B023
            )
    if "cases" in args.only:
        report.attempt("operator: random calls, long form", lambda: _cases(args.cases, args.seed, report.say))
    if "kills" in args.only:
        for number, (task, processes, mode) in enumerate(RUNS):
            if task in args.tasks:
                own = folder / f"{task}{number}"
                report.attempt(
                    f"kills at random moments: {task}, {processes} processes {mode}".strip(),
                    lambda: _kills(task, processes, mode, args, own, report.say),  # noqa: B023
                )
    if report.results:
        print(markdown(report.results))
    print(
        "\n".join(["| long form | result |", "|---|---|", *(f"| {name} | {result} |" for name, result in report.rows)])
    )
    sys.exit(report.failed)


if __name__ == "__main__":
    main()
