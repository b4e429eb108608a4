"""Compiled kernels on disk, for the next process."""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

_DIGEST = hashlib.sha256().digest_size


def cache_folder(name: str) -> Path | None:
    """Return this user's folder for one kind of compiled kernels, None where there is no home."""
    place = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    try:
        # A relative path is no place at all, says the XDG Base Directory Specification.
        base = Path(place) if os.path.isabs(place) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return base / "flowturbo_trt" / name


class KernelCache:
    """Files by key, each behind its own hash; a folder that cannot be used is a cache that is empty."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def read(self, key: str) -> bytes | None:
        """Return what was written under a key, None if that is nothing or is damaged."""
        if self._folder is None:
            return None
        try:
            data = (self._folder / key).read_bytes()
        except OSError:
            return None
        digest, content = data[:_DIGEST], data[_DIGEST:]
        return content if hashlib.sha256(content).digest() == digest else None

    def write(self, key: str, content: bytes) -> bool:
        """Keep a content, and tell whether that was possible."""
        if self._folder is None:
            return False
        draft: str | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=self._folder)
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            # Several processes may start at once: each sees a whole file or none.
            os.replace(draft, self._folder / key)
        except OSError:
            if draft is not None:
                Path(draft).unlink(missing_ok=True)
            return False
        return True
