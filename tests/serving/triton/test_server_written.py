"""A repository as the command writes it, on a real server that is started as the command says."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tritonclient.http
from click.testing import CliRunner

from flowturbo_trt.benchmarks.serving_requests import Row, ask_http
from flowturbo_trt.benchmarks.triton_server import start
from flowturbo_trt.commands.group import cli
from flowturbo_trt.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from flowturbo_trt.benchmarks.triton_server import Installation


def test_starts_as_told(
    tiny_bundle: Path, tiny_pipeline: Pipeline, tmp_path: Path, triton_server: "Installation"
) -> None:
    """With every schedule warmed up, a second instance and a cache; the answers are the pipeline's own."""
    words = ["--name", "tiny", "--threads", "1", "--instances", "2", "--schedule", "H1P1R1", "--schedule"]
    words += ["E3@0,0.25,0.5,1", "--previews", "--response-cache"]
    result = CliRunner().invoke(cli, ["triton", str(tiny_bundle), str(tmp_path / "models"), *words])
    assert result.exit_code == 0, result.output
    (command,) = (line for line in result.stdout.splitlines() if line.startswith("  tritonserver "))
    rows = [Row(2, 5), Row(0, 6), Row(1, 2**64 - 1)]
    with (
        start(tmp_path / "models", flags=shlex.split(command)[2:], installation=triton_server) as server,
        tritonclient.http.InferenceServerClient(server.http) as client,
    ):
        assert client.is_model_ready("tiny_previews")
        images = ask_http(client, "tiny", rows)
        (other,) = ask_http(client, "tiny", [Row(2, 5, 3.0, "E3@0,0.25,0.5,1")])
    np.testing.assert_array_equal(images, tiny_pipeline([2, 0, 1], seeds=[5, 6, 2**64 - 1]))
    expected = tiny_pipeline([2], seeds=[5], guidance=3.0, schedule="E3@0,0.25,0.5,1")
    np.testing.assert_array_equal(other, expected[0])
