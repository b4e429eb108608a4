"""A whole bundle of version 1, written by hand: what a later reader must still accept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

VERSION1 = Path(__file__).parent / "version1"
GRAPH = "onnx/predictor.guided.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(VERSION1, tmp_path / "bundle"))


@pytest.fixture
def data() -> dict[str, Any]:
    """The manifest's JSON data."""
    content: dict[str, Any] = json.loads((VERSION1 / "manifest.json").read_text(encoding="utf-8"))
    return content
