"""Files that appear whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

from flowturbo_trt.bundle.writing import sync


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, see it to the disk, and give it its name."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        write(partial)
        sync([partial])
        os.replace(partial, path)
        sync([path])
    finally:
        partial.unlink(missing_ok=True)
