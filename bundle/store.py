"""Bundles on disk: opened by one validating reader, written whole or not at all."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from flowturbo_trt.bundle.manifest import BundleError, FileRecord, Manifest, from_json, to_json

MANIFEST = "manifest.json"


class Bundle:
    """An opened bundle: its manifest is valid, its files exist in their sizes.

    A file's hash is checked when the file is first asked for, once.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._hashed: set[str] = set()

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Open a bundle directory; raises BundleError with the cause of rejection."""
        path = Path(path)
        manifest_file = path / MANIFEST
        if not manifest_file.is_file():
            raise BundleError(
                f"{path}: no bundle here ({MANIFEST} not found); make one with `flowturbo_trt build`"
            )
        if manifest_file.is_symlink():
            raise BundleError(f"{manifest_file}: is a link; bundles hold plain files")
        try:
            manifest = from_json(manifest_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{manifest_file}: cannot be read ({error})") from error
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from error
        bundle = cls(path, manifest)
        for name, record in manifest.files.items():
            bundle._check_size(name, record)
        bundle._check_nothing_else()
        return bundle

    def file(self, name: str) -> Path:
        """Return the path of one of the bundle's files after checking its hash."""
        path = self.path / name
        if name not in self._hashed:
            if sha256(path) != self.manifest.files[name].sha256:
                raise BundleError(
                    f"{path}: its content is not what was built (sha256 differs); "
                    "restore it or rebuild the bundle"
                )
            self._hashed.add(name)
        return path

    def check_all(self) -> None:
        """Check the hash of every file."""
        for name in self.manifest.files:
            self.file(name)

    def _check_nothing_else(self) -> None:
        # A graph could name weights that no hash covers.
        known = {*self.manifest.files, MANIFEST}
        for path in self.path.glob("*/**/*"):
            if not path.is_dir() and path.relative_to(self.path).as_posix() not in known:
                raise BundleError(f"{path}: is not part of the bundle; move it elsewhere")

    def _check_size(self, name: str, record: FileRecord) -> None:
        path = self.path / name
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
            raise BundleError(f"{self.path}: the manifest names {name!r}, which leaves the bundle")
        # A link could lead out of the bundle, or change under a running process.
        if any(part.is_symlink() for part in (path, *path.parents) if self.path in part.parents):
            raise BundleError(f"{path}: is a link; bundles hold plain files")
        if not path.is_file():
            raise BundleError(f"{path}: is missing; restore it or rebuild the bundle")
        if path.stat().st_size != record.bytes:
            raise BundleError(
                f"{path}: has {path.stat().st_size} bytes, expected {record.bytes}; "
                "copy the bundle again or rebuild it"
            )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Describe every file below a folder, by its path relative to it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {f.relative_to(folder).as_posix(): FileRecord(f.stat().st_size, sha256(f)) for f in files}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(to_json(manifest), encoding="utf-8")


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Give a folder to write a bundle into; it becomes `out` when the block ends without an error.

    Until then an older bundle at `out` stays untouched. Raises BundleError when `out` cannot be
    written, or is something else than a bundle.
    """
    out = Path(os.path.abspath(out))
    if out == Path.cwd() or out.is_mount():
        raise BundleError(f"{out}: cannot be replaced as a whole; give a new folder below it")
    if (out.exists() or out.is_symlink()) and not (out / MANIFEST).is_file() and not _is_empty_folder(out):
        raise BundleError(f"{out}: exists and is no bundle; give a new path")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise BundleError(
            f"{out}: cannot be written ({error.strerror}); give a path you may write to"
        ) from error
    try:
        yield draft
        draft.chmod(0o755)
        _exchange(draft, out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise BundleError(f"{out}: the disk is full; nothing was changed") from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _exchange(draft: Path, out: Path) -> None:
    """Put the draft in the place of `out`; whatever fails, one of the two bundles is there afterwards."""
    if not out.exists():
        os.rename(draft, out)
        return
    old = draft.with_name(f"{draft.name}.old")
    try:
        os.rename(out, old)
        os.rename(draft, out)
    except BaseException:
        # An interrupt too must not lose the older bundle; another build's may be there by now.
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    finally:
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
