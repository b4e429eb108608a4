"""flowturbo.h through ctypes: what any language that can call C does."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

STATUSES = ("ok", "bundle", "request", "schedule", "backend", "internal")


class LibraryError(Exception):
    """A status other than ok, by its kind, and the library's message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{STATUSES[status]}: {message}")


class LoadOptions(ctypes.Structure):
    _fields_ = (("backend", ctypes.c_char_p), ("device", ctypes.c_char_p), ("threads", ctypes.c_int32))


class Info(ctypes.Structure):
    _fields_ = (
        ("label_minimum", ctypes.c_int64),
        ("label_maximum", ctypes.c_int64),
        ("schedule_count", ctypes.c_size_t),
        ("latent_channels", ctypes.c_size_t),
        ("latent_height", ctypes.c_size_t),
        ("latent_width", ctypes.c_size_t),
        ("image_height", ctypes.c_size_t),
        ("image_width", ctypes.c_size_t),
        ("default_guidance", ctypes.c_float),
    )


class Request(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_size_t),
        ("labels", ctypes.c_void_p),
        ("seeds", ctypes.c_void_p),
        ("guidance", ctypes.c_void_p),
        ("guidance_count", ctypes.c_size_t),
        ("schedule", ctypes.c_char_p),
    )


class Library:
    """The functions of a shared library."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        for name in ("last_error", "schedule", "backend"):
            getattr(self.functions, f"flowturbo_{name}").restype = ctypes.c_char_p
        self.functions.flowturbo_schedule.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self.functions.flowturbo_backend.argtypes = (ctypes.c_void_p,)
        self.functions.flowturbo_close.argtypes = (ctypes.c_void_p,)
        self.functions.flowturbo_close.restype = None

    def check(self, status: int) -> None:
        if status:
            raise LibraryError(status, self.functions.flowturbo_last_error().decode())

    @contextmanager
    def load(self, bundle: Path, **options: Any) -> Iterator["CPipeline"]:
        """Open a bundle; `options` are fields of flowturbo_load_options."""
        pipeline = ctypes.c_void_p()
        given = LoadOptions(**options)
        path = str(bundle).encode()
        self.check(self.functions.flowturbo_load(path, ctypes.byref(given), ctypes.byref(pipeline)))
        try:
            yield CPipeline(self, pipeline)
        finally:
            self.functions.flowturbo_close(pipeline)

    def noise(self, seed: int, count: int) -> NDArray[np.float32]:
        out = np.full(count, np.nan, dtype=np.float32)
        self.functions.flowturbo_noise(ctypes.c_uint64(seed), pointer(out), ctypes.c_size_t(count))
        return out

    def raw(self, seed: int, count: int) -> NDArray[np.uint64]:
        out = np.zeros(count, dtype=np.uint64)
        self.functions.flowturbo_noise_raw(ctypes.c_uint64(seed), pointer(out), ctypes.c_size_t(count))
        return out


class CPipeline:
    """A loaded bundle."""

    def __init__(self, library: Library, handle: ctypes.c_void_p) -> None:
        self.handle = handle
        self._library = library

    @property
    def info(self) -> Info:
        info = Info()
        self._library.check(self._library.functions.flowturbo_get_info(self.handle, ctypes.byref(info)))
        return info

    @property
    def schedules(self) -> list[str]:
        functions, count = self._library.functions, self.info.schedule_count
        return [functions.flowturbo_schedule(self.handle, index).decode() for index in range(count)]

    @property
    def backend(self) -> str:
        name: bytes = self._library.functions.flowturbo_backend(self.handle)
        return name.decode()

    def images(self, labels: Sequence[int], **given: Any) -> NDArray[np.uint8]:
        """Generate (N,H,W,3); `given` are seeds, guidance and schedule."""
        info = self.info
        out = np.zeros((len(labels), info.image_height, info.image_width, 3), dtype=np.uint8)
        self.run("flowturbo_generate", labels, out, out.nbytes, **given)
        return out

    def latents(self, labels: Sequence[int], **given: Any) -> NDArray[np.float32]:
        """Generate (N,C,H,W)."""
        info = self.info
        shape = (len(labels), info.latent_channels, info.latent_height, info.latent_width)
        out = np.zeros(shape, dtype=np.float32)
        self.run("flowturbo_generate_latents", labels, out, out.size, **given)
        return out

    def run(
        self,
        function: str,
        labels: Sequence[int],
        out: NDArray[Any],
        size: int,
        *,
        seeds: Sequence[int] | None = None,
        guidance: float | Sequence[float] | None = None,
        schedule: str | None = None,
    ) -> None:
        """Call a function that writes `size` values into `out`."""
        taken = np.array(labels, dtype=np.int64)
        drawn = None if seeds is None else np.array(seeds, dtype=np.uint64)
        scales = None if guidance is None else np.array(guidance, dtype=np.float32).reshape(-1)
        text = None if schedule is None else schedule.encode()
        scale_count = 0 if scales is None else len(scales)
        request = Request(len(taken), pointer(taken), pointer(drawn), pointer(scales), scale_count, text)
        call = getattr(self._library.functions, function)
        self._library.check(call(self.handle, ctypes.byref(request), pointer(out), ctypes.c_size_t(size)))


def pointer(array: NDArray[Any] | None) -> ctypes.c_void_p | None:
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def refused(library: Library, bundle: Path, match: str, **options: Any) -> None:
    """Expect that a bundle cannot be loaded, for a reason on one line."""
    with pytest.raises(LibraryError, match=match) as caught, library.load(bundle, **options):
        pass
    assert "\n" not in str(caught.value)
