"""Fetch a large file once: resumable, atomic, and verified against the checksum that its host gives.

Hugging Face answers a file's address with a redirect that carries the SHA-256 (`X-Linked-Etag`) and the size
(`X-Linked-Size`).
"""

import hashlib
import os
import re
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock
from tqdm import tqdm

from .errors import CheckpointError, UserError
from .integrity import is_verified, mark_verified

__all__ = ["fetch"]

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_OWN = "# computed here: the host gave none to compare it with\n"  # so the file's own checksums are compared as well


class _LinkedFile(HTTPRedirectHandler):
    """Keeps what a redirect says about the file behind it."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        self.headers |= {key.lower(): value for key, value in headers.items() if key.lower().startswith("x-linked-")}
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _receive(url: str, part: Path) -> str | None:
    """Append what is missing to `part`; return the SHA-256 that the host gives, if it gives one."""
    linked = _LinkedFile()
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "internimage"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = build_opener(linked).open(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not start:
            raise
        response = error  # nothing is missing, or the part is not of this file: the checksum will tell
    with response:
        if response.status == 200:
            start = 0
        own = {key.lower(): value for key, value in response.headers.items()} | linked.headers
        total = int(own.get("x-linked-size") or start + int(own.get("content-length") or 0))
        if response.status != 416:
            bar = tqdm(
                total=total or None, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None, leave=False
            )
            with bar, open(part, "ab" if start else "wb") as file:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
            if part.stat().st_size < total:
                raise URLError(f"the connection ended after {part.stat().st_size} of {total} bytes")
    # A plain ETag is no substitute: storage hosts put hashes of their own into it.
    etag = re.search(r"\b[0-9a-f]{64}\b", own.get("x-linked-etag", ""))
    return etag[0] if etag else None


def _download(url: str, path: Path) -> tuple[str, bool]:
    """Download `url` to a `.part` beside `path`; return its SHA-256 and whether the host gave the same."""
    part = path.with_name(path.name + ".part")
    resumed = part.exists()
    expected = _receive(url, part)
    digest = _sha256(part)
    if resumed and expected not in (None, digest):
        part.unlink()  # of another version, or damaged: start clean
        expected = _receive(url, part)
        digest = _sha256(part)
    if expected not in (None, digest):
        part.unlink()
        raise UserError(
            f"{url} arrived damaged: SHA-256 {digest}, expected {expected}; try again, or download it by hand to {path}"
        )
    return digest, expected is not None


def fetch(url: str, path: Path) -> Path:
    """Return `path`, downloading `url` to it if it is not there.

    An interrupted download continues. The checksum is recorded beside the file (`.sha256`) and compared once in every
    later process. Processes that ask for the same file wait for one download.

    Raises:
        UserError: no network, no such file, damaged on the way; says what to download by hand and where to put it.
        CheckpointError: the file has changed since its checksum was recorded.
    """
    record = path.with_name(path.name + ".sha256")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            given = False  # by the host
            if not path.exists():
                digest, given = _download(url, path)
                record.write_text(f"{digest}  {path.name}\n" + _OWN * (not given))
                os.replace(path.with_name(path.name + ".part"), path)
            elif not record.exists():  # put there by hand
                record.write_text(f"{_sha256(path)}  {path.name}\n{_OWN}")
            elif not is_verified(path):
                recorded = record.read_text()
                given = _OWN not in recorded
                if [_sha256(path)] != recorded.split()[:1]:
                    raise CheckpointError(
                        f"{path} is damaged: its SHA-256 is not the one in {record.name}; delete both to download it "
                        "again"
                    )
            if given:
                mark_verified(path)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        code = f"HTTP {error.code}, " if isinstance(error, HTTPError) else ""
        raise UserError(
            f"cannot download {path.name} ({code}{reason}); try again, or download {url} by hand and save it as {path}"
        ) from error
    return path
