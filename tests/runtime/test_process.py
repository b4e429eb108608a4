"""A deployed process: from start to images without the libraries of the build machine, or a network."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILDING = ("torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "safetensors", "PIL", "click")
PROBE = """
import json, socket, sys

def connect(*arguments):
    raise AssertionError("the network was asked for")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = connect
from flowturbo_trt import Pipeline

pipeline = Pipeline.load(sys.argv[1], threads=1)
images = pipeline([1, 2], schedule="H1P1R1", on_step=lambda step: step.preview())
print(json.dumps({"shape": images.shape, "loaded": [name for name in sys.argv[2:] if name in sys.modules]}))
"""


def test_what_a_process_loads(tiny_bundle: Path) -> None:
    process = [sys.executable, "-c", PROBE, str(tiny_bundle), *BUILDING]
    done = subprocess.run(process, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"shape": [2, 8, 8, 3], "loaded": []}
    assert done.stderr == ""
