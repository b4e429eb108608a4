"""Bundles on disk, opened by one validating reader."""

import hashlib
from pathlib import Path, PurePosixPath

from flowturbo_trt.bundle.manifest import BundleError, FileRecord, Manifest
from flowturbo_trt.bundle.manifest_json import from_json

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
        manifest = read_manifest(path)
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


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a bundle directory without a look at its files; raises BundleError."""
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(
            f"{path}: no bundle here ({MANIFEST} not found); make one with `flowturbo_trt build`"
        )
    if file.is_symlink():
        raise BundleError(f"{file}: is a link; bundles hold plain files")
    try:
        manifest = from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{file}: cannot be read ({error})") from error
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    for name in manifest.files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
            raise BundleError(f"{path}: the manifest names {name!r}, which leaves the bundle")
    return manifest


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
