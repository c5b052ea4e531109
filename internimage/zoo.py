"""The model zoo: released weights by name, the tables of the README, and a check of their measured columns.

python -m internimage.zoo               list the released models
python -m internimage.zoo --markdown    print the README's tables
python -m internimage.zoo --check       rebuild the classifiers and compare parameters and FLOPs
"""

import argparse
import difflib
import os
import sys
from pathlib import Path

import torch

from .download import fetch
from .errors import UserError, exit_on_user_error
from .flops import count_flops, count_parameters
from .zoo_data import EXPLAINED_GFLOPS, MEASURED, PUBLISHED_MPARAMS, Release, releases

__all__ = [
    "cache_dir",
    "check",
    "checkpoint_path",
    "local_checkpoint",
    "markdown_table",
    "measure",
    "readme_tables",
]

TASKS = ("classification", "detection", "segmentation")
_ROOT = Path(__file__).parents[1]

_CLASSIFICATION_NOTES = """\
Measured columns: `python -m internimage.zoo --check`. FLOPs follow the published convention (multiply-adds of
convolutions and linear layers, 5 per sampled point and channel for the operator); it gives the published figures of
T to XL, and 1.0% and 0.4% more than published for H and G. Published #param of the IN-22K models are those with a head
of 1000 classes, measured ones those with the released head of 21841."""


def cache_dir() -> Path:
    """Where released files are kept: `$INTERNIMAGE_HOME`, else PyTorch's checkpoint cache."""
    home = os.environ.get("INTERNIMAGE_HOME")
    return Path(home).expanduser() if home else Path(torch.hub.get_dir(), "checkpoints")


def checkpoint_path(name: str) -> Path:
    """Return the local file of a released model, downloading it on first use.

    Args:
        name: of a classifier (`internimage.list_models()`), or of a detection or segmentation checkpoint
            (`mask_rcnn_internimage_t_fpn_1x_coco`).

    Raises:
        UserError: no such model, no released weights for it, or the download failed.
        CheckpointError: the cached file is damaged.
    """
    known = {release.name: release for release in reversed(releases()) if release.checkpoint}
    if name not in known:
        if name in MEASURED or any(release.name == name for release in releases()):
            raise UserError(f"no weights were released for {name}; build it without pretrained weights")
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "run python -m internimage.zoo for the list"
        raise UserError(f"unknown model {name!r}; {hint}")
    path = known[name].checkpoint
    return fetch(known[name].url(path), cache_dir() / Path(path).name)


def local_checkpoint(source: str | os.PathLike) -> Path:
    """Return the local file of weights given as a path, an address, or the file name of a released model.

    Released files are recognised by their name, wherever a path or an address points, and downloaded on first use; a
    file that is there is taken first. So recipes that name `pretrained/internimage_l_22k_192to384.pth` find it without
    a step by hand.

    Raises:
        UserError: no such file, or the download failed.
        CheckpointError: the cached file is damaged.
    """
    source = os.fspath(source)
    remote = source.startswith(("http://", "https://"))
    path = Path(source).expanduser()
    if path.exists() and not remote:
        return path
    names = {name: release for release in releases() for name in (release.name, Path(release.checkpoint).stem)}
    release = names.get(path.stem) if path.suffix in ("", ".pth") else None
    if release and release.checkpoint:
        return checkpoint_path(release.name)
    if remote:
        return fetch(source, cache_dir() / path.name)
    raise UserError(
        f"no checkpoint at {source}; give a path, an address, or a released name (python -m internimage.zoo lists them)"
    )


# Tables


def _link(text: str, target: str) -> str:
    return f"[{text}]({target})" if target else ""


def _row(release: Release) -> dict[str, str]:
    facts = {key: "not published" if value == "TBD" else value for key, value in release.facts.items()}
    if release.name in MEASURED:
        parameters, flops = MEASURED[release.name]
        facts["#param measured"] = f"{parameters / 1e6:.1f}M"
        facts["FLOPs measured"] = f"{flops / 1e9:.{1 if flops < 2e10 else 0}f}G"
    # Configs of recipes that are not in the repository are named, not linked.
    exists = release.config and (_ROOT / release.config).is_file()
    facts["config"] = _link("config", release.config) if exists else Path(release.config).name
    weights = [("ckpt", release.checkpoint), ("HF", release.hugging_face), ("log", release.log)]
    facts["download"] = " \\| ".join(_link(text, release.url(path)) for text, path in weights if path)
    return facts


def markdown_table(task: str) -> str:
    """Return the Markdown tables of one task, one per section of the original model zoo.

    Args:
        task: classification, detection or segmentation.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
    chosen = [release for release in releases() if release.task == task]
    parts = []
    for section in dict.fromkeys(release.section for release in chosen):
        rows = [_row(release) for release in chosen if release.section == section]
        last = ("config", "download")
        columns = [c for c in dict.fromkeys(c for row in rows for c in row) if c not in last]
        columns += [c for c in last if any(row[c] for row in rows)]
        lines = [f"**{section.removeprefix('Dataset: ')}**", "", "| " + " | ".join(columns) + " |"]
        lines.append("|" + " :---: |" * len(columns))
        lines += ["| " + " | ".join(row.get(column, "") for column in columns) + " |" for row in rows]
        parts.append("\n".join(lines))
    if task == "classification":
        parts.append(_CLASSIFICATION_NOTES)
    return "\n\n".join(parts)


def readme_tables() -> str:
    """Return the README's tables: classification in full, the others folded."""
    parts = [f"### Classification\n\n{markdown_table('classification')}"]
    for task in TASKS[1:]:
        parts.append(f"<details>\n<summary>{task.capitalize()}</summary>\n\n{markdown_table(task)}\n\n</details>")
    return "\n\n".join(parts)


def _listing() -> str:
    lines = []
    for task in TASKS:
        lines.append(f"{task}:")
        for release in releases():
            if release.task == task:
                facts = ", ".join(f"{key} {value}" for key, value in release.facts.items())
                lines.append(f"  {release.name or '(no file released)':60} {facts}")
    return "\n".join(lines)


# Check


def measure(name: str) -> tuple[int, int]:
    """Build a released classifier on the meta device; return its parameters and FLOPs."""
    from .variants import create_model  # which itself comes here for pretrained weights

    size = int(name.rsplit("_", 1)[1].split("to")[-1])
    with torch.device("meta"):
        model = create_model(name)
        images = torch.empty(1, 3, size, size)
        metadata = (torch.empty(1, 4), torch.empty(1, 3)) if hasattr(model, "meta_head") else ()
    return count_parameters(model), count_flops(model, images, *metadata)


def _differences(name: str, parameters: int, flops: int) -> list[str]:
    """What differs from the recorded and the published figures."""
    found = []
    if (parameters, flops) != MEASURED[name]:
        found.append(f"recorded are {MEASURED[name][0]} parameters and {MEASURED[name][1]} FLOPs")
    mparams = PUBLISHED_MPARAMS.get(name)
    if mparams and f"{parameters / 1e6:.{len(mparams.partition('.')[2])}f}" != mparams:
        found.append(f"published are {mparams} M parameters")
    published = next((release.facts.get("FLOPs") for release in releases() if release.name == name), None)
    gflops = EXPLAINED_GFLOPS.get(name) or (published or "").removesuffix("G")
    if gflops and f"{flops / 1e9:.0f}" != gflops:
        found.append(f"published are {gflops} GFLOPs")
    return found


def check(names: list[str] | None = None) -> bool:
    """Rebuild classifiers, print their measured and published figures; return whether all agree.

    Args:
        names: default all.
    """
    agree = True
    print(f"{'model':34}{'#param (M)':>12}{'published':>11}{'FLOPs (G)':>12}{'published':>11}")
    for name in names or MEASURED:
        parameters, flops = measure(name)
        found = _differences(name, parameters, flops)
        agree = agree and not found
        facts = next((release.facts for release in releases() if release.name == name), {})
        note = "; ".join(found) or ("(known difference, see the README)" if name in EXPLAINED_GFLOPS else "")
        print(
            f"{name:34}{parameters / 1e6:12.1f}{PUBLISHED_MPARAMS.get(name, '-'):>11}"
            f"{flops / 1e9:12.2f}{facts.get('FLOPs', '-').removesuffix('G'):>11}  {note}".rstrip(),
            flush=True,
        )
    print("all agree" if agree else "some differ")
    return agree


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m internimage.zoo", description="The released models.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--markdown", nargs="?", const="all", choices=("all", *TASKS), help="print the README's tables")
    mode.add_argument("--check", action="store_true", help="rebuild the classifiers and compare the measured columns")
    args = parser.parse_args(argv)
    if args.check:
        return 0 if check() else 1
    if args.markdown:
        print(readme_tables() if args.markdown == "all" else markdown_table(args.markdown))
    else:
        print(_listing())
    return 0


if __name__ == "__main__":
    sys.exit(main())
