"""Verify the checksums in PyTorch's zip archives, which `torch.load` ignores.

`torch.save` writes a zip archive of uncompressed members, each with its CRC-32. Files of PyTorch before 1.6 and
safetensors files have no checksums; those saved with `torch.utils.serialization.config.save.compute_crc32 = False`
have zeros.
"""

import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .errors import CheckpointError

__all__ = ["is_verified", "mark_verified", "verify_archive"]

_CHUNK = 1 << 20  # bytes at a time
_verified: set[tuple[int, ...]] = set()


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def mark_verified(path: Path) -> None:
    """Mark a file as verified in this process, until it changes."""
    _verified.add(_identity(path))


def is_verified(path: Path) -> bool:
    """Whether this process has verified the current content of the file."""
    return _identity(path) in _verified


def _is_whole(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(info) as member:  # checks the name here, the checksum at the end
            while member.read(_CHUNK):
                pass
    except (zipfile.BadZipFile, EOFError, RuntimeError):  # RuntimeError: its flags say that it is encrypted
        return False
    return True


def verify_archive(path: Path) -> None:
    """Verify the checksum of every member of a zip archive written by `torch.save`, once per process.

    Raises:
        CheckpointError: a checksum differs, or a member is compressed.
        zipfile.BadZipFile: the table of members is damaged.
    """
    if is_verified(path):
        return
    identity = _identity(path)
    # Several threads: zlib releases the GIL while it computes a checksum.
    with zipfile.ZipFile(path) as archive, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        members = archive.infolist()
        if compressed := [info.filename for info in members if info.compress_type != zipfile.ZIP_STORED]:
            raise CheckpointError(
                f"{len(compressed)} of its {len(members)} parts are compressed ({compressed[0]}), which torch.save "
                "never does; save it again with torch.save"
            )
        if any(info.CRC for info in members):
            whole = list(threads.map(lambda info: _is_whole(archive, info), members))
            if not all(whole):
                raise CheckpointError(
                    f"it is damaged: {whole.count(False)} of its {len(whole)} parts differ from their checksum (first: "
                    f"{members[whole.index(False)].filename}); download it again, or resume from the checkpoint before"
                )
    _verified.add(identity)
