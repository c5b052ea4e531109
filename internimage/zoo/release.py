"""The rows of the model zoo (`releases.tsv`) and the local files of their weights.

The rows are those of the original projects' model zoos, InternImage (60) and FlashInternImage (24), in their order.
"""

import csv
import difflib
import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UserError
from .download import fetch, hub_endpoint

__all__ = ["Release", "cache_dir", "checkpoint_path", "local_checkpoint", "releases"]


@dataclass(frozen=True)
class Release:
    """One row of the model zoo.

    Attributes:
        task: classification, detection or segmentation.
        section: of the original model zoo.
        facts: published, column to value.
        config: paths of configurations in this repository, separated by spaces, or empty.
        checkpoint: path of the weights on the Hugging Face host, or empty.
        hugging_face: the model's repository for transformers, or empty.
        log: path of the training log on the host, or empty.
    """

    task: str
    section: str
    facts: dict[str, str]
    config: str
    checkpoint: str
    hugging_face: str
    log: str

    @property
    def name(self) -> str:
        """The name of the checkpoint, else of the config; empty if there is neither."""
        stem = Path(self.checkpoint or self.config).stem
        return stem.replace("flash_internimage", "flash_intern_image") if self.task == "classification" else stem

    def url(self, path: str) -> str:
        """URL of `checkpoint`, `hugging_face` or `log`, on `HF_ENDPOINT` if set."""
        return f"{hub_endpoint()}/{path}"


@functools.cache
def releases() -> tuple[Release, ...]:
    """All released models, in the order of the original model zoos."""
    with open(Path(__file__).with_name("releases.tsv"), encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return tuple(Release(**{**row, "facts": json.loads(row["facts"])}) for row in rows)


def cache_dir() -> Path:
    """The folder of downloaded files: `$INTERNIMAGE_HOME`; defaults to PyTorch's checkpoint cache."""
    home = os.environ.get("INTERNIMAGE_HOME")
    return Path(home).expanduser() if home else Path(torch.hub.get_dir(), "checkpoints")


def checkpoint_path(name: str) -> Path:
    """Return the local file of a released model; download it on first use.

    Args:
        name: of a classifier (`internimage.list_models()`), or of a detection or segmentation checkpoint
            (`mask_rcnn_internimage_t_fpn_1x_coco`).

    Raises:
        UserError: no weights with this name were released, or the download failed.
        CheckpointError: the cached file is damaged.
    """
    known = {release.name: release for release in reversed(releases()) if release.checkpoint}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "run python -m internimage.zoo for the list"
        raise UserError(f"no weights were released with the name {name!r}; {hint}")
    return fetch(known[name].url(known[name].checkpoint), cache_dir())


def local_checkpoint(source: str | os.PathLike) -> Path:
    """Return the local file of weights given as a path, a URL, or the file name of a released model.

    An existing file takes precedence. Released files are recognized by their name, in any path or URL, and downloaded
    on first use: recipes with `pretrained/internimage_l_22k_192to384.pth` work without a manual download.

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
    if remote:  # different hosts may have different files with the same name
        url = source.replace("https://huggingface.co/", f"{hub_endpoint()}/", 1)  # from the mirror, if one is set
        return fetch(url, cache_dir() / hashlib.sha256(source.encode()).hexdigest()[:16])
    raise UserError(
        f"no checkpoint at {source}; pass a path, a URL, or a released name (python -m internimage.zoo lists them)"
    )
