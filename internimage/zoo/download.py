"""Download files, once, and verify them, once.

`huggingface_hub` downloads the files of its repositories (retries, mirrors, private repositories), urllib the others.
"""

import hashlib
import os
import re
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock
from huggingface_hub import get_hf_file_metadata, hf_hub_download

from ..errors import CheckpointError, UserError
from ..integrity import mark_verified, verify_archive

__all__ = ["fetch", "hub_endpoint"]

_TIMEOUT = 30  # seconds without a byte


def hub_endpoint() -> str:
    """The URL of Hugging Face, or of the mirror in `HF_ENDPOINT`."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def fetch(url: str, folder: Path) -> Path:
    """Return the local path of `url` in `folder`; download the file if it does not exist.

    Processes that need the same file wait for one download; the file gets its name when it is complete. It is verified
    with the SHA-256 from Hugging Face, else with its own checksums, and again only after it changed.

    Raises:
        UserError: no network, no such file, or a damaged download. The message has the URL and the path for a manual
            download.
        CheckpointError: the existing file is damaged.
    """
    hub_file = re.fullmatch(re.escape(hub_endpoint()) + r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?#]+)", url)
    path = folder / (hub_file[3] if hub_file else unquote(Path(urlsplit(url).path).name))
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f".{path.name}.lock")):
                if path.exists():
                    pass  # downloaded by another process
                elif hub_file:
                    _download_from_hub(url, *hub_file.groups(), folder)
                else:
                    _download(url, path)
    except Exception as error:  # of urllib, httpx, huggingface_hub, filelock and the file system
        reason = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"cannot download {path.name} ({reason}); try again, or download {url} by hand and save it as {path}"
        ) from None  # the message has the reason
    _check_once(path)
    return path


def _download_from_hub(url: str, repo_id: str, revision: str, filename: str, folder: Path) -> None:
    expected = get_hf_file_metadata(url).etag or ""  # first, because this fails at once without a network
    endpoint = hub_endpoint()
    path = Path(hf_hub_download(repo_id, filename, revision=revision, local_dir=folder, endpoint=endpoint))
    if not re.fullmatch(r"[0-9a-f]{64}", expected):  # a small file or a mirror: no SHA-256
        return
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        path.unlink()
        raise UserError(f"the download is damaged: SHA-256 {digest.hexdigest()}, expected {expected}")
    _remember_check(path)


def _download(url: str, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    request = Request(url, headers={"User-Agent": "internimage"})
    with urlopen(request, timeout=_TIMEOUT) as response, open(part, "wb") as file:
        shutil.copyfileobj(response, file)
        total = int(response.headers.get("Content-Length") or 0)
    if part.stat().st_size < total:
        raise OSError(f"the connection ended after {part.stat().st_size} of {total} bytes")
    os.replace(part, path)


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}.checked")


def _state(path: Path) -> bytes:
    found = path.stat()
    return f"{found.st_size} bytes, changed at {found.st_mtime_ns}".encode()


def _remember_check(path: Path) -> None:
    with suppress(OSError):  # a shared folder may be read-only
        _record(path).write_bytes(_state(path))


def _check_once(path: Path) -> None:
    """Verify the checksums in the file, unless it has not changed since the last check."""
    if not _record(path).is_file() or _record(path).read_bytes() != _state(path):
        try:
            if zipfile.is_zipfile(path):
                verify_archive(path)
        except (CheckpointError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path}: {error}; delete it to download it again") from error
        _remember_check(path)
    mark_verified(path)
