"""Findings about running: the base install, what a GPU takes beside it, and every backend."""

import re
from collections.abc import Iterator

from flowturbo_trt.evaluation.doctor.facts import OPTIONAL_MODULES, Facts
from flowturbo_trt.evaluation.doctor.findings import Finding, Library, Status, judge
from flowturbo_trt.evaluation.doctor.probes import CUDA_PACKAGES as CUDA_DISTRIBUTIONS
from flowturbo_trt.evaluation.doctor.probes import PROVIDER_NAMES, Answer

CUDA_INSTALL = "pip install 'flowturbo_trt[cuda]'"
# The name of the finding about it, to which others point.
CUDA_PACKAGES = "CUDA packages"


def run_findings(facts: Facts) -> Iterator[Finding]:
    """Tell whether the base install works, and on which devices engines run."""
    yield judge(facts, "run", "numpy", Library("numpy"), facts.registries)
    yield judge(facts, "run", "Pillow", Library("pillow", use="writes image files"), facts.libraries["PIL"])
    yield _onnxruntime(facts)
    yield _provider(facts, "cuda", "CUDA", facts.cuda)
    yield _provider(facts, "tensorrt", "TensorRT", facts.tensorrt)
    yield _cuda_packages(facts)
    for backend in facts.backends:
        yield _backend(facts, backend)


def _onnxruntime(facts: Facts) -> Finding:
    brought_by = facts.onnxruntimes
    preferred = "onnxruntime-gpu" if "onnxruntime-gpu" in brought_by else (*brought_by, "onnxruntime")[0]
    if len(brought_by) > 1:
        both = ", ".join(f"{name} {facts.packages.get(name, '')}".strip() for name in brought_by)
        remedy = f"pip uninstall -y {' '.join(brought_by)} && pip install {preferred}"
        detail = f"installed {len(brought_by)} times over, each overwriting the other's files: {both}"
        return Finding("run", "onnxruntime", "problem", detail, remedy)
    providers = facts.onnxruntime.details.get("providers", ())
    short = ", ".join(provider.removesuffix("ExecutionProvider") for provider in providers)
    library = Library(preferred, use=f"{preferred}, with providers {short}")
    finding = judge(facts, "run", "onnxruntime", library, facts.onnxruntime)
    if finding.status == "ok" and "cpu" not in facts.onnxruntime.details["devices"]:
        remedy = f"pip install --force-reinstall {preferred}"
        return Finding("run", "onnxruntime", "problem", "multiplies numbers wrongly, or not at all", remedy)
    return finding


def _provider(facts: Facts, provider: str, title: str, answer: Answer) -> Finding:
    """Judge a provider of ONNX Runtime's for GPUs."""
    name = f"{title} provider"
    if devices := answer.details.get("devices", ()):
        return Finding("run", name, "ok", f"starts on {', '.join(devices)}")
    if not facts.onnxruntime.works:
        return Finding("run", name, "not needed", "onnxruntime does not work, see above")
    built_in = PROVIDER_NAMES[provider] in facts.onnxruntime.details.get("providers", ())
    if not facts.has_gpu:
        detail = "built in, but there is no GPU" if built_in else "none, and there is no GPU"
        return Finding("run", name, "not needed", detail)
    if provider == "tensorrt":
        reason = f"does not start: {answer.error or _reason(answer.said)}" if built_in else "none in this one"
        remedy = "only for `--provider tensorrt`: install the TensorRT that this ONNX Runtime was made for"
        return Finding("run", name, "not needed", reason, remedy)
    if not built_in:
        installed = " ".join(facts.onnxruntimes) or "onnxruntime"
        remedy = f"pip uninstall -y {installed} && pip install onnxruntime-gpu"
        return Finding("run", name, "problem", "this onnxruntime has none, so the GPU is not used", remedy)
    reason = answer.error or _reason(answer.said)
    return Finding("run", name, "problem", f"does not start: {reason}", _cuda_remedy(answer.said))


def _reason(said: str) -> str:
    """Find in what ONNX Runtime printed why it could not start a provider."""
    for pattern in (r"with error: (.+)", r"(CUDA failure .+)", r"(CUDNN failure .+)"):
        if match := re.search(pattern, said):
            return match[1].strip()[:200]
    return (said.splitlines()[-1:] or ["it gave no reason"])[0][:200]


def _cuda_remedy(said: str) -> str:
    match = re.search(r"Require (cuDNN \S+) and (CUDA [\d.]+\*?)", said)
    wanted = f"{match[2]} and {match[1]}" if match else "the CUDA and cuDNN it was made for"
    return f"install {wanted} where the loader finds them (LD_LIBRARY_PATH), and a driver for that CUDA"


def _cuda_packages(facts: Facts) -> Finding:
    """Judge what compiles sums for a GPU and talks to it, whichever backend runs the engines."""
    told, name = facts.cuda_packages, CUDA_PACKAGES
    lacking = told.details.get("lacking", {})
    absent = [package for package in lacking if package not in facts.packages]
    purpose = "" if facts.has_gpu else "only to run on a GPU: "
    status: Status = "problem" if facts.has_gpu else "not needed"
    if absent:
        return Finding("run", name, status, f"not installed: {', '.join(absent)}", purpose + CUDA_INSTALL)
    if lacking or not told.works:
        reasons = "; ".join(f"{package}: {error.partition('; ')[0]}" for package, error in lacking.items())
        again = f"pip install --force-reinstall {' '.join(lacking) or 'cuda-bindings nvidia-cuda-nvrtc'}"
        return Finding("run", name, status, reasons or told.error, purpose + again)
    versions = (f"{package} {facts.packages.get(package, '')}".strip() for package in CUDA_DISTRIBUTIONS)
    detail = f"{', '.join(versions)}; kernels compile"
    for device, error in told.details.get("devices", {}).items():
        if error and facts.has_gpu:
            reason, _, remedy = error.partition("; ")
            return Finding("run", name, "problem", reason, remedy or "mend the NVIDIA driver")
        detail += f", {device} answers" if not error else ""
    return Finding("run", name, "ok", detail)


def _backend(facts: Facts, backend: str) -> Finding:
    name, answer = f"on {backend}", facts.backends[backend]
    if answer.missing and answer.missing == OPTIONAL_MODULES.get(backend):
        remedy = f"only to run its engines: pip install 'flowturbo_trt[{backend}]'"
        return Finding("run", name, "not needed", "not installed", remedy)
    if not answer.works:
        remedy = f"mend {answer.missing or backend}, see above"
        return Finding("run", name, "problem", f"cannot start: {answer.error}", remedy)
    if devices := facts.devices(backend):
        able = "; ".join(f"{device}: {', '.join(precisions)}" for device, precisions in devices.items())
        return Finding("run", name, "ok", "; ".join(filter(None, (answer.version, able))))
    if backend not in facts.registries.details["gpu"]:
        return Finding("run", name, "problem", "no device to run on", f"mend {backend}, see above")
    if facts.has_gpu:
        return Finding("run", name, "problem", "cannot reach the GPU", f"mend the {CUDA_PACKAGES}, see above")
    remedy = "only to run its engines: a machine with an NVIDIA GPU and driver"
    return Finding("run", name, "not needed", f"{answer.version}; there is no GPU".lstrip("; "), remedy)
