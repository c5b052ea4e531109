"""Sharded checkpoints: folders that all processes write together, with `torch.distributed.checkpoint` (DCP).

A folder has the name of the plain file without `.pth`. In it are one `.distcp` file of each process with its shards,
`.metadata` with the place of every shard, and `rest.pth` with everything that is not sharded. A folder is written under
a temporary name and renamed when it is complete.
"""

import functools
import io
import os
import pickle
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.tensor import DTensor

from internimage.checkpoint import load_file, save_atomic
from internimage.errors import CheckpointError
from internimage.files import publish_folder, temporary_name

__all__ = ["complete", "read", "split", "verify", "why"]

_REST, _METADATA, _CHECKSUM = "rest.pth", ".metadata", "checksum of .metadata"

# What DCP pickles in .metadata.
_NAMES = {
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
        *("TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    **dict.fromkeys(("pathlib", "pathlib._local"), {"PosixPath", "WindowsPath"}),
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _NAMES.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is not loaded for safety")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """Reads `.metadata` without creating other objects than DCP writes; DCP itself would run any pickle."""

    def __init__(self, folder: Path, checksum: int) -> None:
        super().__init__(folder)
        self._checksum = checksum

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        data = Path(self.path, _METADATA).read_bytes()
        if zlib.crc32(data) != self._checksum:
            raise CheckpointError("its .metadata is damaged")
        metadata = _MetadataUnpickler(io.BytesIO(data)).load()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def split(state: Mapping, place: str = "") -> tuple[dict[str, DTensor], dict]:
    """The sharded tensors of nested dicts, by their keys joined with `/`, and the dicts without them."""
    shards, rest = {}, {}
    for key, value in state.items():
        if isinstance(value, DTensor):
            shards[f"{place}{key}"] = value
        elif isinstance(value, Mapping):
            inner, rest[key] = split(value, f"{place}{key}/")
            shards |= inner
        else:
            rest[key] = value
    return shards, rest


def complete(folder: Path, rest: dict, paths: list[Path]) -> None:
    """Add `rest` to a folder that DCP has written, and put it under each path, in place of existing folders."""
    save_atomic(rest | {_CHECKSUM: zlib.crc32((folder / _METADATA).read_bytes())}, folder / _REST)
    for path in paths[:-1]:
        copied = temporary_name(path)
        shutil.copytree(folder, copied, copy_function=_link)
        publish_folder(copied, path)
    publish_folder(folder, paths[-1])


def _link(source: str, target: str) -> None:
    """A hard link, where the file system has them, or a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _open(folder: Path) -> tuple[dict, _Reader]:
    if not (folder / _REST).is_file():
        raise CheckpointError(f"{folder} is a folder without {_REST}, not a checkpoint; give the path of a checkpoint")
    rest = load_file(folder / _REST)
    return rest, _Reader(folder, rest.pop(_CHECKSUM, -1))


def why(error: BaseException) -> str:
    """The last line of an error: DCP's have the tracebacks of all processes above it."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (Exception, dcp.CheckpointException) as error:  # DCP and pickle raise many types
        if isinstance(error, CheckpointError) and str(path) in str(error):
            raise
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({why(error)}); resume from the one before"
        ) from error


def verify(path: Path) -> None:
    """Verify the checksums of a checkpoint, a file or a folder. Raises `CheckpointError`."""
    if not path.is_dir():
        load_file(path)
        return
    with _reading(path):
        for part in _open(path)[1].read_metadata().storage_data.values():  # each is an archive of torch.save
            with open(path / Path(part.relative_path).name, "rb") as file:
                file.seek(part.offset)
                archive = zipfile.ZipFile(io.BytesIO(file.read(part.length)))
            if damaged := archive.testzip():
                raise CheckpointError(f"{part.relative_path} differs from its checksum ({damaged})")


def read(path: Path, like: Callable[[str], DTensor | None] = lambda key: None) -> Any:
    """Read a checkpoint, a file or a folder, in the form of the plain file. Raises `CheckpointError`.

    `like` gives, for a key of `split`, the tensor whose shards are to be read; None to read the whole tensor.
    """
    if not path.is_dir():
        return load_file(path)
    tensors = {}
    with _reading(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        state, reader = _open(path)
        for key, entry in reader.read_metadata().state_dict_metadata.items():
            own, dtype = like(key), entry.properties.dtype
            fits = own is not None and own.shape == entry.size
            tensors[key] = torch.empty_like(own, dtype=dtype) if fits else torch.empty(entry.size, dtype=dtype)
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    for key, tensor in tensors.items():
        *outer, last = (int(part) if part.isdecimal() else part for part in key.split("/"))
        functools.reduce(lambda inner, part: inner.setdefault(part, {}), outer, state)[last] = tensor
    return state
