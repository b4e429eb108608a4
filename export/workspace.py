"""The place a build works in: beside the bundle, for one build at a time, kept when a build is cut short.

    .NAME.build/lock         held by the build that works here
    .NAME.build/bundle/      the bundle in the making
    .NAME.build/finished/    one record for each piece that is done
    .NAME.build/current/     the piece being made
    .NAME.build/running      what is being made, for the build after a sudden end

A piece counts as finished once its record is there, and its record is written last. So whatever the
moment a build is killed in, the next one goes on from the pieces that were finished.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from flowturbo_trt.bundle.lock import hold
from flowturbo_trt.bundle.manifest import BundleError, Engine, FileRecord, Graph, Manifest
from flowturbo_trt.bundle.store import read_manifest, sha256
from flowturbo_trt.bundle.writing import (
    check_place,
    exchange,
    finish,
    recover,
    remove,
    sync,
    unwritable,
)
from flowturbo_trt.export.build_log import BuildLog
from flowturbo_trt.export.keys import Key, count_differences, difference, digest

Work = Callable[[Path], Sequence[Path]]
LOCK = "lock"
FOLDERS = ("bundle", "bundle.old", "finished", "current")


@dataclass(frozen=True)
class Piece:
    """A finished piece: its key and its files by path inside the folder `root`, the first one foremost."""

    name: str
    key: Key
    root: Path
    files: dict[str, FileRecord]


class Workspace:
    """Makes the pieces of a bundle, or takes them from where they are finished already.

    `draft` is the bundle in the making, `files` describes the files in it.
    """

    def __init__(self, folder: Path, out: Path, log: BuildLog) -> None:
        self.draft = folder / "bundle"
        self._finished = folder / "finished"
        self._current = folder / "current"
        self._log = log
        self._out = out
        for path in (self.draft, self._finished):
            path.mkdir(exist_ok=True)
        self.files: dict[str, FileRecord] = {}
        self._known = [*self._read_records(), *self._older_pieces()]

    def finished_bytes(self, keys: Sequence[Key]) -> int:
        """Return the size of the finished pieces of some keys."""
        found = {digest(piece.key): piece for piece in self._known if piece.key in keys}
        return sum(record.bytes for piece in found.values() for record in piece.files.values())

    def piece(self, name: str, place: str, key: Key, work: Work) -> Piece:
        """Return a piece: finished before, or made by `work` in the folder it is given.

        `work` returns the files it made, which are moved to `place` inside the bundle, or files that
        are in the bundle already.
        """
        for known in self._known:
            if known.key == key and self._take(known):
                here = "by the build before" if known.root == self.draft else f"in {self._out}"
                self._log.say(f"{name}: reused, finished {here}")
                return self._record(Piece(name, key, self.draft, known.files))
        self._explain(name, key)
        shutil.rmtree(self._current, ignore_errors=True)
        self._current.mkdir()
        with self._log.working(name):
            made = [self._move(file, place) for file in work(self._current)]
            records = {file.relative_to(self.draft).as_posix(): _describe(file) for file in made}
        return self._record(Piece(name, key, self.draft, records))

    def publish(self, manifest: Manifest) -> None:
        """Put the bundle in its place; what was there is gone only then."""
        finish(self.draft, manifest)
        exchange(self.draft, self._out)
        self._log.write(f"{self._out}: done")

    def _take(self, piece: Piece) -> bool:
        """Bring a finished piece into the draft; False if its files are not what they were."""
        sources = {name: piece.root / name for name in piece.files}
        if not all(_is(file, piece.files[name]) for name, file in sources.items()):
            self._log.say(f"{piece.name}: not reused, a file of it in {piece.root} is missing or altered")
            return False
        for name, source in sources.items():
            target = self.draft / name
            if source != target:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                _link(source, target)
        return True

    def _move(self, file: Path, place: str) -> Path:
        if self._current not in file.parents:
            return file
        target = self.draft / place / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed and never written over: the name may be a link to the older bundle's file.
        os.replace(file, target)
        return target

    def _record(self, piece: Piece) -> Piece:
        path = self._finished / f"{digest(piece.key)}.json"
        files = {name: asdict(record) for name, record in piece.files.items()}
        draft = path.with_suffix(".partial")
        draft.write_text(json.dumps({"name": piece.name, "key": piece.key, "files": files}))
        sync([draft])
        os.replace(draft, path)
        self.files.update(piece.files)
        return piece

    def _read_records(self) -> Iterator[Piece]:
        for path in sorted(self._finished.glob("*.json")):
            try:
                data = json.loads(path.read_text())
                files = {name: FileRecord(**record) for name, record in data["files"].items()}
                yield Piece(data["name"], data["key"], self.draft, files)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                self._log.say(f"{path}: not readable, and so what it records is made anew")

    def _older_pieces(self) -> Iterator[Piece]:
        """Yield the pieces of the bundle that is there; whether its files are whole is seen when taken."""
        if not self._out.exists() or not any(self._out.iterdir()):
            return
        try:
            manifest = read_manifest(self._out)
        except BundleError as error:
            self._log.say(f"nothing of the older bundle is reused: {error}")
            return
        items: list[Graph | Engine] = [*manifest.graphs, *manifest.engines]
        for item in items:
            if item.key:
                files = {name: manifest.files[name] for name in item.files}
                backend = item.backend if isinstance(item, Engine) else "onnx"
                yield Piece(f"{backend} {item.name}", item.key, self._out, files)

    def _explain(self, name: str, key: Key) -> None:
        """Say why a piece is made though there is one of its name."""
        others = [known.key for known in self._known if known.name == name and known.key != key]
        if others:
            closest = min(others, key=partial(count_differences, key))
            self._log.say(f"{name}: made anew, for {difference(closest, key)}")
        else:
            self._log.write(f"{name}: made for the first time")


@contextlib.contextmanager
def open_workspace(out: Path, say: Callable[[str], None]) -> Iterator[Workspace]:
    """Give the workspace of a bundle, alone; it is removed when the build is done or has made nothing.

    `say` is told what the log is told. Raises BundleError when `out` cannot be written or is no
    bundle, when another build is at work there, and when the disk is full.
    """
    out = check_place(out)
    folder = out.parent / f".{out.name}.build"
    try:
        lock = _lock(folder, out)
    except OSError as error:
        raise unwritable(out, error) from error
    try:
        recover(folder / "bundle", out)
        with BuildLog(out.with_name(f"{out.name}.build.log"), folder / "running", say) as log:
            workspace = Workspace(folder, out, log)
            try:
                yield workspace
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise BundleError(
                        f"{out}: the disk is full; nothing there was changed, free some space and build again"
                    ) from error
                raise
    except BaseException:
        if not any((folder / "finished").glob("*.json")):
            _remove(folder)
        raise
    else:
        _remove(folder)
    finally:
        os.close(lock)


def _lock(folder: Path, out: Path) -> int:
    """Return a descriptor that holds the lock until it is closed, by the end of the process if need be."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        if any(folder.iterdir()) and not (folder / LOCK).is_file():
            raise BundleError(f"{folder}: is in the way, and no build made it; move it elsewhere")
        try:
            descriptor = hold(folder / LOCK)
        except FileNotFoundError:
            # Removed in between, by a build that is done.
            continue
        if descriptor is None:
            raise BundleError(f"{out}: another build is at work there; wait for it, or give another path")
        return descriptor


def _remove(folder: Path) -> None:
    """Remove a workspace, its lock last: until then nobody else works in it."""
    for name in FOLDERS:
        if (folder / name).is_dir():
            remove(folder / name)
    (folder / LOCK).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _describe(file: Path) -> FileRecord:
    sync([file])
    return FileRecord(file.stat().st_size, sha256(file))


def _is(file: Path, record: FileRecord) -> bool:
    plain = file.is_file() and not file.is_symlink()
    return plain and file.stat().st_size == record.bytes and sha256(file) == record.sha256


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Not every file system has links, or allows one more.
        shutil.copyfile(source, target)
