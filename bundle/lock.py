"""A lock by a file: one process at a time has it, until it ends if it does not give it back before."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold the lock in a block, and remove its file after; give False while another process has it.

    Raises OSError where the file cannot be made.
    """
    descriptor = hold(path)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def hold(path: Path) -> int | None:
    """Return a descriptor that holds the lock until it is closed; None while another process has it.

    Who holds it may remove the file when there is nothing more to keep others from. On a file system
    without locks it keeps nobody out. Raises OSError where the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            # Some file systems that machines share have none: who works there has to take care.
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP):
                os.close(descriptor)
                raise
            return descriptor
        if _is_named(descriptor, path):
            return descriptor
        # Who held it was done and has removed the file since: this lock keeps nobody out.
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        held, named = os.fstat(descriptor), os.stat(path)
    except FileNotFoundError:
        return False
    return (held.st_ino, held.st_dev) == (named.st_ino, named.st_dev)
