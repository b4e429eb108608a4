"""Files of solver tables: read as manifests are, refused in one line."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from flowturbo_trt.bundle.table_file import load_table
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.table import SolverTable

TABLE = SolverTable("ours", (0.0, 0.4, 1.0), ((0.4,), (-0.2, 0.8)), refined=1)


def test_table_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"command": "calibrate solver", "table": asdict(TABLE)}))
    assert load_table(path) == TABLE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no solver table; give what `calibrate solver --out` wrote"),
        ('{"tables": []}', "holds no solver table"),
        ('{"table": {"name": "ours", "times": [0, 1]}}', "table: 'weights' is missing"),
        ('{"table": {"name": "ours", "times": [0, 1], "weights": [["1"]]}}', "expected float"),
        (
            '{"table": {"name": "ours", "times": [1, 0], "weights": [[1]]}}',
            "times must increase within 0 to 1",
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(FlowTurboError, match=message) as raised:
        load_table(path)
    assert str(path) in str(raised.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FlowTurboError, match=r"table\.json: cannot be read"):
        load_table(tmp_path / "table.json")
