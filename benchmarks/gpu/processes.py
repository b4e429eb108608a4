"""Deployed processes: they load and run a bundle without the libraries of the build machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

from flowturbo_trt.benchmarks.gpu.asking import Setting, in_turn
from flowturbo_trt.benchmarks.gpu.findings import Findings

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "safetensors")
CHILD = """
import json, sys, time
started = time.time()
given = json.loads(sys.argv[1])
from flowturbo_trt import Pipeline
pipeline = Pipeline.load(given["path"], backend=given["backend"], device=given["device"],
                         provider=given["provider"])
request = {name: given[name] for name in ("labels", "seeds", "guidance", "schedule")}
images = pipeline(**request)
print(json.dumps({"images": images.tobytes().hex(), "seconds": time.time() - started,
                  "loaded": [name for name in given["heavy"] if name in sys.modules]}))
"""


def deployed_process(setting: Setting, findings: Findings) -> None:
    """Answer a request in a fresh process: what it imports, and that it gives the same images."""
    first = in_turn(setting)[0]
    given = {
        "path": str(setting.path),
        "backend": setting.target.backend,
        "device": setting.device,
        "provider": setting.target.provider,
        "labels": first.request.conditions["label"].tolist(),
        "seeds": list(first.request.seeds),
        "guidance": first.request.guidance.tolist(),
        "schedule": first.schedule,
        "heavy": HEAVY,
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(given)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    name = "libraries of the build machine in a deployed process"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        findings.check(name, 0, "a process that runs", met=False, why=reason[:300])
        return
    report = json.loads(done.stdout.splitlines()[-1])
    loaded = report["loaded"]
    why = f"{', '.join(loaded)}" if loaded else f"first images after {report['seconds']:.2f} s"
    findings.check(name, len(loaded), "0", met=not loaded, why=why)
    with setting.pipeline() as pipeline:
        images = first.of(pipeline).images
    assert images is not None
    wrong = images.tobytes().hex() != report["images"]
    same = setting.target.backend != "onnxruntime" or setting.target.provider == "cpu"
    if same:
        findings.check("its images, as this process's", float(wrong), "0 differ", met=not wrong)
