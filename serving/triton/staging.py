"""What is put into a repository is put together beside it first, and appears in it by renaming.

A server may be polling the repository, or starting on it: a folder in it without a config keeps a
strict server from starting, and any change in a model's folder makes a polling one load the model anew.
So the work of minutes is done in REPOSITORY/../.REPOSITORY.NAME.writing, and what a server sees of it are a
few renames. A run that was killed leaves that folder, which the next one for the same model removes.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from flowturbo_trt.bundle.lock import held
from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import MANIFEST, Bundle
from flowturbo_trt.bundle.writing import remove, sync
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.serving.triton.layout import CONFIG
from flowturbo_trt.serving.triton.warmup import FOLDER

Progress = Callable[[str, int, int], object]


class RepositoryError(FlowTurboError):
    """A model repository that cannot be written, or holds what must not be replaced."""


def check_place(repository: Path) -> Path:
    """Return the repository as an absolute path without links, where models can be put; it may not exist yet.

    Raises RepositoryError.
    """
    repository = Path(os.path.realpath(repository))
    if (repository / MANIFEST).exists():
        raise RepositoryError(f"{repository}: is a bundle; give the folder of the model repository")
    if repository.exists() and not repository.is_dir():
        raise RepositoryError(f"{repository}: is no folder; give that of the model repository")
    if repository.is_mount():
        raise RepositoryError(
            f"{repository}: is a mount point, with no room beside it to put a model together; give a folder "
            "below it"
        )
    for folder in (repository, repository.parent):
        if folder.exists() and not os.access(folder, os.W_OK):
            raise RepositoryError(f"{folder}: is read-only; make it writable, or give another repository")
    return repository


@contextlib.contextmanager
def staged(repository: Path, name: str) -> Iterator[Path]:
    """Give an empty folder to put a model together in, on the repository's file system, then remove it.

    Raises RepositoryError while another process writes this model, and for OSError in the block.
    """
    folder = repository.with_name(f".{repository.name}.{name}.writing")
    try:
        repository.parent.mkdir(parents=True, exist_ok=True)
        with held(folder.with_suffix(".lock")) as is_ours:
            if not is_ours:
                raise RepositoryError(f"{repository}: another process is writing {name} there; try again")
            _clear(folder)
            folder.mkdir()
            try:
                yield folder
            finally:
                _clear(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RepositoryError(
                f"{repository}: the disk is full; what is served is as it was, free some space and write "
                "again"
            ) from error
        raise RepositoryError(
            f"{repository}: cannot be written ({error.strerror}); give a folder you may write to"
        ) from error


def _clear(folder: Path) -> None:
    if folder.exists():
        remove(folder)


def check_space(bundle: Bundle, repository: Path) -> None:
    """Raise RepositoryError where a copy of a bundle does not fit; the repository may not exist yet."""
    needed = sum(record.bytes for record in bundle.manifest.files.values())
    free = shutil.disk_usage(repository.parent).free
    if needed > free:
        raise RepositoryError(
            f"{repository}: the copy of the bundle takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            "free; free some space, or remove versions that are no longer needed"
        )


def copy_bundle(bundle: Bundle, target: Path, progress: Progress) -> None:
    """Copy a bundle file by file, and hold the copy against its hashes; raises BundleError."""
    files = [MANIFEST, *bundle.manifest.files]
    for done, name in enumerate(files):
        progress("copying the bundle", done, len(files))
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        # Without permissions and owner: a server may run as another user.
        shutil.copyfile(bundle.path / name, target / name)
    progress("copying the bundle", len(files), len(files))
    copy = Bundle.open(target)
    if copy.manifest != bundle.manifest:
        raise BundleError(f"{bundle.path}: was changed while it was copied; write again")
    copy.check_all()


def publish(draft: Path, folder: Path) -> None:
    """Let a server see a model's draft: a whole model, or a config and versions for one that is there.

    The config goes before the versions: it says of every version what bundle to expect there, of older
    ones and of new ones, and a version that it does not know would not load.
    """
    sync(path for path in draft.rglob("*") if path.is_file())
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        os.rename(draft, folder)
        sync([folder])
        return
    (folder / FOLDER).mkdir(exist_ok=True)
    for file in sorted((draft / FOLDER).glob("*")):
        os.replace(file, folder / FOLDER / file.name)
    if (draft / CONFIG).exists():
        os.replace(draft / CONFIG, folder / CONFIG)
    sync([folder])
    for version in sorted(path for path in draft.iterdir() if path.name.isdecimal()):
        os.rename(version, folder / version.name)
    sync([folder])
