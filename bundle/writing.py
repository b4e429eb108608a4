"""Writing bundles: put together elsewhere on the same file system, then exchanged for the older one."""

import ctypes
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from flowturbo_trt.bundle.manifest import FORMAT, BundleError, Manifest
from flowturbo_trt.bundle.manifest_json import to_json
from flowturbo_trt.bundle.store import MANIFEST

# Beside the manifest while it is exchanged (bundle/amend.py), and after a sudden end.
LOCK, PARTIAL = f"{MANIFEST}.lock", f"{MANIFEST}.partial"
# linux/fcntl.h and linux/fs.h
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_place(out: Path) -> Path:
    """Return `out` as an absolute path after making sure that a bundle may be put there.

    Raises BundleError when it cannot be written, or when something would be lost that no build made.
    """
    out = Path(os.path.abspath(out))
    if Path.cwd().is_relative_to(out) or out.is_mount():
        raise BundleError(f"{out}: cannot be replaced as a whole; give a new folder below it")
    if out.is_symlink():
        raise BundleError(f"{out}: is a link to {os.readlink(out)}; give that folder, or a new path")
    if out.exists() and not _is_empty_folder(out):
        _check_bundle(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    if out.exists() and not os.access(out, os.W_OK):
        raise BundleError(f"{out}: is read-only; make it writable, or give another path")
    return out


def _check_bundle(out: Path) -> None:
    """Refuse to replace what is no bundle, or holds anything beside one."""
    try:
        data = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        files = {MANIFEST, LOCK, PARTIAL, *data["files"]} if data["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        files = None
    if files is None:
        raise BundleError(f"{out}: exists and is no bundle; give a new path")
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        if not path.is_dir() and name not in files:
            raise BundleError(f"{out}: holds {name}, which is not part of the bundle; move it elsewhere")


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
    try:
        if not out.exists():
            os.rename(draft, out)
        elif _exchange_at_once(draft, out):
            remove(draft)
        else:
            _exchange_in_turn(draft, out)
    except PermissionError as error:
        raise unwritable(out, error) from error
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
        if not out.exists():
            os.rename(old, out)
        raise
    remove(old)


def recover(draft: Path, out: Path) -> None:
    """Finish what a kill between the two renames of `exchange` left: put the older bundle back."""
    old = draft.with_name(f"{draft.name}.old")
    if not old.exists():
        return
    if out.exists():
        remove(old)
    else:
        os.rename(old, out)


def remove(folder: Path) -> None:
    """Delete a folder that a build made, whatever permissions were put on it since."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
