"""Writing bundles: put together elsewhere on the same file system, then exchanged for the older one."""

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from flowturbo_trt.bundle.manifest import BundleError, Manifest, to_json
from flowturbo_trt.bundle.store import MANIFEST

# linux/fcntl.h and linux/fs.h
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_place(out: Path) -> Path:
    """Return `out` as an absolute path after making sure that a bundle may be put there.

    Raises BundleError when it cannot be written or is something else than a bundle.
    """
    out = Path(os.path.abspath(out))
    if out == Path.cwd() or out.is_mount():
        raise BundleError(f"{out}: cannot be replaced as a whole; give a new folder below it")
    if (out.exists() or out.is_symlink()) and not (out / MANIFEST).is_file() and not _is_empty_folder(out):
        raise BundleError(f"{out}: exists and is no bundle; give a new path")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    return out


def unwritable(out: Path, error: OSError) -> BundleError:
    return BundleError(f"{out}: cannot be written ({error.strerror}); give a path you may write to")


def finish(draft: Path, manifest: Manifest) -> None:
    """Complete a draft: exactly the manifest's files and the manifest, safely on the disk."""
    for path in [path for path in draft.rglob("*") if not path.is_dir()]:
        if path.relative_to(draft).as_posix() not in manifest.files:
            path.unlink()
    for folder in sorted((path for path in draft.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    (draft / MANIFEST).write_text(to_json(manifest), encoding="utf-8")
    draft.chmod(0o755)
    sync([draft / MANIFEST, *(draft / name for name in manifest.files)])


def sync(paths: Iterable[Path]) -> None:
    """Wait until files, and the folders that name them, would outlive a power failure."""
    files = list(paths)
    for path in [*files, *sorted({file.parent for file in files})]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def exchange(draft: Path, out: Path) -> None:
    """Put the draft in the place of `out`, and delete what was there.

    In one step where the system can exchange two folders; otherwise there is a moment without a
    bundle, and an interruption in it puts the older one back.
    """
    if not out.exists() and not out.is_symlink():
        os.rename(draft, out)
    elif _exchange_at_once(draft, out):
        _remove(draft)
    else:
        _exchange_in_turn(draft, out)
    sync([out])


def _exchange_at_once(a: Path, b: Path) -> bool:
    """Exchange two names atomically; return False where the system or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    done: int = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return done == 0


def _exchange_in_turn(draft: Path, out: Path) -> None:
    old = draft.with_name(f"{draft.name}.old")
    try:
        os.rename(out, old)
        os.rename(draft, out)
    except BaseException:
        # An interrupt too must not lose the older bundle.
        if not out.exists() and not out.is_symlink():
            os.rename(old, out)
        raise
    _remove(old)


def recover(draft: Path, out: Path) -> None:
    """Finish what a kill between the two renames of `exchange` left: put the older bundle back."""
    old = draft.with_name(f"{draft.name}.old")
    if not (old.exists() or old.is_symlink()):
        return
    if out.exists() or out.is_symlink():
        _remove(old)
    else:
        os.rename(old, out)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        with contextlib.suppress(OSError):
            shutil.rmtree(path)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
