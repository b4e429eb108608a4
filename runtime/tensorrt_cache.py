"""Kernels that TensorRT for RTX compiled for one plan on one GPU, kept between processes.

Plans for RTX hold no machine code: it is made when a context first needs it, which takes seconds for a
large network. What is kept here only saves that time. So a folder that cannot be written and a file
that is damaged or of another machine are no errors: the kernels are compiled again.
"""

import contextlib
import ctypes
import hashlib
import os
import sys
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

_DIGEST = hashlib.sha256


@dataclass(frozen=True)
class CacheKey:
    """Everything that compiled kernels depend on; `plan` is the sha256 of the plan's file."""

    plan: str
    module: str
    gpu: str
    capability: tuple[int, int]
    driver: str

    @property
    def file(self) -> str:
        parts = "\n".join(map(str, astuple(self)))
        return f"{self.plan[:12]}-{_DIGEST(parts.encode()).hexdigest()[:20]}.cache"


class KernelCache:
    """An IRuntimeCache that remembers what was in its file."""

    def __init__(self, folder: Path, key: CacheKey, cache: Any) -> None:
        self.path = folder / key.file
        self.cache = cache
        self._saved = 0
        content = _read(self.path)
        # False for kernels of another version or GPU, which the key should exclude.
        if content is not None and cache.deserialize(content):
            self._saved = len(content)

    def save(self) -> bool:
        """Write the kernels to the file if there are more than in it, and tell whether that was done."""
        held = self.cache.serialize()
        if held is None:
            return False
        content = bytes(memoryview(held))
        if len(content) <= self._saved or not _write(self.path, content):
            return False
        self._saved = len(content)
        return True


def default_folder() -> Path:
    """Return the user's folder for kernels that were compiled for TensorRT plans."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flowturbo_trt" / "tensorrt"


def driver_version() -> str:
    """Return the CUDA version that the driver speaks, e.g. `13000`, or `none` without a driver."""
    version = ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "none"
    failed = driver.cuDriverGetVersion(ctypes.byref(version))
    return "none" if failed else str(version.value)


def _read(path: Path) -> bytes | None:
    """Return a file's content if it is whole: TensorRT is not given what is not."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    size = _DIGEST().digest_size
    digest, body = content[:size], content[size:]
    return body if _DIGEST(body).digest() == digest else None


def _write(path: Path, content: bytes) -> bool:
    """Write a file at once or not at all; other processes may be reading and writing it."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            temporary = Path(file.name)
            file.write(_DIGEST(content).digest())
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return False
    return True
