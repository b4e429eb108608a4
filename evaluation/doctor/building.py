"""Findings about building: the libraries that export takes, and the compilers of the backends."""

import re
from collections.abc import Iterable, Iterator

from flowturbo_trt.evaluation.doctor.facts import EXPORT_LIBRARIES, OPTIONAL_MODULES, TENSORRT_MODULES, Facts
from flowturbo_trt.evaluation.doctor.findings import Finding, Library, judge
from flowturbo_trt.evaluation.doctor.probes import Answer

GROUP = "build"
# Before a backend's name, in the name of the finding that tells whether it can be built for.
FOR = "for "
EXPORT_INSTALL = "pip install 'flowturbo_trt[export]'"
USES = {"torch": "builds and trains", "diffusers": "reads decoders"}


def buildable(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return the backends that findings tell can be built for."""
    return tuple(
        finding.name.removeprefix(FOR)
        for finding in findings
        if finding.group == GROUP and finding.name.startswith(FOR) and finding.status == "ok"
    )


def build_findings(facts: Facts) -> Iterator[Finding]:
    """Tell whether the libraries of `build` work, and for which backends it can compile."""
    answers = {module: facts.libraries[module] for module in EXPORT_LIBRARIES}
    if all(answer.missing for answer in answers.values()):
        detail = f"without {', '.join(answers)}; bundles run without them"
        yield Finding(GROUP, "libraries", "not needed", detail, f"only to build: {EXPORT_INSTALL}")
        lacking = ["all of them"]
    else:
        judged = [
            judge(facts, GROUP, module, Library(package, "export", USES.get(module, "")), answers[module])
            for module, package in EXPORT_LIBRARIES.items()
        ]
        yield from judged
        lacking = [finding.name for finding in judged if finding.status == "problem"]
    for backend, answer in facts.compilers.items():
        yield _compiler(facts, backend, answer, lacking)
    yield from _extras(facts)


def _extras(facts: Facts) -> Iterator[Finding]:
    cxx, polygraphy = facts.machine.cxx, facts.libraries["polygraphy"]
    if cxx:
        yield Finding(GROUP, "C++ compiler", "ok", cxx)
    else:
        remedy = "only for `bench --against torch-compile`: install g++, or set CXX"
        yield Finding(GROUP, "C++ compiler", "not needed", "none found", remedy)
    if polygraphy.missing == "polygraphy":
        remedy = "only for `verify --bisect`: pip install 'flowturbo_trt[verify]'"
        yield Finding(GROUP, "polygraphy", "not needed", "not installed", remedy)
    else:
        library = Library("polygraphy", "verify", "for `verify --bisect`")
        yield judge(facts, GROUP, "polygraphy", library, polygraphy)


def _compiler(facts: Facts, backend: str, answer: Answer, lacking: list[str]) -> Finding:
    """Judge a backend to build for; `lacking` are the libraries that fail of those every build needs."""
    name = FOR + backend
    if backend in TENSORRT_MODULES:
        finding = _tensorrt(facts, backend, answer)
    elif answer.works:
        finding = Finding(GROUP, name, "ok", f"{answer.version}, builds on any machine")
    elif answer.missing and answer.missing == OPTIONAL_MODULES.get(backend):
        remedy = f"only to build for it: pip install 'flowturbo_trt[{backend}]'"
        finding = Finding(GROUP, name, "not needed", "not installed", remedy)
    else:
        again = f"pip install --force-reinstall {backend}"
        remedy = again if backend in OPTIONAL_MODULES else f"{EXPORT_INSTALL}, and mend {backend}"
        finding = Finding(GROUP, name, "problem", f"its compiler cannot start: {answer.error}", remedy)
    if lacking and (finding.status == "ok" or backend not in TENSORRT_MODULES):
        detail = f"needs the libraries above: {', '.join(lacking)}"
        return Finding(GROUP, name, "not needed", detail, f"only to build: {EXPORT_INSTALL}")
    return finding


def _tensorrt(facts: Facts, backend: str, answer: Answer) -> Finding:
    """Tell apart: not installed, not whole, without the GPU that it needs, well."""
    name, module = FOR + backend, TENSORRT_MODULES[backend]
    of_it = re.compile(rf"{backend}(-cu\d+)?(-bindings|-libs)?")
    held = [f"{package} {version}" for package, version in facts.packages.items() if of_it.fullmatch(package)]
    if answer.missing == module and not held:
        remedy = f"only to build for it: pip install 'flowturbo_trt[{backend}]'"
        return Finding(GROUP, name, "not needed", "not installed", remedy)
    if not answer.works:
        detail = f"{', '.join(sorted(held)) or module} without working libraries: {answer.error}"
        names = " ".join(sorted(text.split()[0] for text in held)) or backend
        again = f"pip uninstall -y {names} && pip install 'flowturbo_trt[{backend}]'"
        remedy = f"where the vendor's index, https://pypi.nvidia.com, can be reached: {again}"
        return Finding(GROUP, name, "problem", detail, remedy)
    version = f"{module} {answer.version}"
    others = " or ".join(other for other in facts.compilers if other != backend)
    elsewhere = f"build where the engines are to run, or for {others}"
    if answer.details["bound"] and not facts.machine.gpus:
        detail = f"{version} builds on the GPU that the engines are to run on; {facts.machine.gpu_error}"
        return Finding(GROUP, name, "problem", detail, elsewhere)
    if not answer.details["builds"]:
        said = (answer.said.splitlines()[-1:] or ["it gave no reason"])[0]
        return Finding(GROUP, name, "problem", f"{version} cannot start: {said}", elsewhere)
    where = "for the GPU of this machine" if answer.details["bound"] else "without a GPU"
    return Finding(GROUP, name, "ok", f"{version}, builds engines {where}")
