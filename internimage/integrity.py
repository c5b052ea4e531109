"""Whether a checkpoint is what was written: the checksums in PyTorch's zip archives, which `torch.load` ignores.

`torch.save` writes a zip archive of uncompressed members, each with its CRC-32. Files of PyTorch before 1.6 and
safetensors files have no checksums; those saved with `torch.utils.serialization.config.save.compute_crc32 = False`
have zeros.
"""

import mmap
import os
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .errors import CheckpointError

__all__ = ["is_verified", "mark_verified", "verify_archive"]

_CHUNK = 1 << 24  # at a time, bytes at a time
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
_verified: set[tuple[int, ...]] = set()


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def mark_verified(path: Path) -> None:
    """Note that this process need not check the file again, as long as it does not change."""
    _verified.add(_identity(path))


def is_verified(path: Path) -> bool:
    """Whether the present content of the file has been compared with a checksum in this process."""
    return _identity(path) in _verified


def _member_is_whole(info: zipfile.ZipInfo, data: memoryview) -> bool:
    header = data[info.header_offset : info.header_offset + _LOCAL_HEADER.size]
    if len(header) < _LOCAL_HEADER.size or info.compress_size != info.file_size:
        return False
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    name_start = info.header_offset + _LOCAL_HEADER.size
    start = name_start + name_length + extra_length
    name = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
    if signature != b"PK\3\4" or data[name_start : name_start + name_length] != name:
        return False
    checksum = 0
    for begin in range(start, start + info.file_size, _CHUNK):
        # zlib lets other threads run meanwhile.
        checksum = zlib.crc32(data[begin : min(begin + _CHUNK, start + info.file_size)], checksum)
    return checksum == info.CRC and start + info.file_size <= len(data)


def verify_archive(path: Path) -> None:
    """Compare every member of a zip archive that `torch.save` wrote with its checksum, once a process.

    Raises:
        CheckpointError: one differs, or is compressed.
        zipfile.BadZipFile: the table of members is damaged.
    """
    if is_verified(path):
        return
    identity = _identity(path)
    with (
        open(path, "rb") as file,
        zipfile.ZipFile(file) as archive,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads,
    ):
        members = archive.infolist()
        if compressed := [info.filename for info in members if info.compress_type != zipfile.ZIP_STORED]:
            raise CheckpointError(
                f"{len(compressed)} of its {len(members)} parts are compressed ({compressed[0]}), as torch.save never "
                "writes them; save it again with torch.save"
            )
        if any(info.CRC for info in members):
            whole = list(threads.map(lambda info: _member_is_whole(info, data), members))
            if not all(whole):
                raise CheckpointError(
                    f"it is damaged: {whole.count(False)} of its {len(whole)} parts differ from their checksum (first: "
                    f"{members[whole.index(False)].filename}); download it again, or resume from the checkpoint before"
                )
    _verified.add(identity)
