"""Unpack the embedded images, train a small InternImage on them, evaluate it, and draw what it learned.

    python -m classification.demo [--output output] [--opts KEY VALUE ...]

Every step is an ordinary command, printed before it runs. Started again, a finished step costs seconds, and a training
that was interrupted goes on where it stopped.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object) -> None:
    """Run a Python script from the repository root; its failure ends the demo with its exit code."""
    words = [str(word) for word in command]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    # Without this, the threads of two cores burn time on waiting for each other whenever another process runs.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    code = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment).returncode
    if code:
        sys.exit(code)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m classification.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="output", metavar="DIR", help="results go to DIR/demo")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="change configuration keys")
    args = parser.parse_args(argv)

    started = time.perf_counter()
    folder = Path(args.output, "demo")
    best = folder / "ckpt_epoch_best.pth"
    config = ["--cfg", "classification/configs/demo.yaml"]
    opts = ["--opts", *args.opts] if args.opts else []
    run("classification/demo/unpack.py")
    run("classification/train.py", *config, "--output", args.output, *opts)
    run("classification/train.py", *config, "--eval", "--resume", best, *opts)
    run("classification/pictures.py", *config, "--checkpoint", best, "--output", folder / "pictures", *opts)
    minutes = (time.perf_counter() - started) / 60
    print(f"\ndone in {minutes:.1f} minutes; pictures are in {folder / 'pictures'}, all curves in TensorBoard:")
    print(f"$ python -m tensorboard.main --logdir {folder}")


if __name__ == "__main__":
    main()
