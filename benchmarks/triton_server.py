"""A real Triton server on this machine: found, started on ports of its own, and ended with all it started."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flowturbo_trt.sampling.errors import FlowTurboError

ROOT = Path(__file__).resolve().parents[1]
# Below the range that outgoing connections take theirs from.
PORTS = range(20000, 32000)
READY_SECONDS = 120
# A server lets requests in flight finish for 30 seconds when it is told to end.
EXIT_SECONDS = 45
STUB = "triton_python_backend_stub"
SHARED_MEMORY = Path("/dev/shm")


class TritonServerError(FlowTurboError):
    """No Triton server is installed, or it does not start."""


@dataclass(frozen=True)
class Installation:
    """A Triton server's program; `wheel` is the site-packages it came in, None where the system has it."""

    binary: Path
    wheel: Path | None = None

    def environment(self) -> dict[str, str]:
        """Return what the server needs to find its libraries, and its models' Python theirs."""
        if self.wheel is None:
            return dict(os.environ)
        # The models' Python is the one first on PATH; PYTHONPATH does not reach it.
        python = self.wheel.parents[2] / "bin"
        libraries = [f"{self.wheel}/nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR") or ""]
        return os.environ | {
            "PATH": f"{python}:{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": ":".join(libraries),
        }

    def backends(self, folder: Path) -> Path | None:
        """Put the backends into `folder` as the server wants them; None where it has its own."""
        if self.wheel is None:
            return None
        server, python = self.wheel / "pytriton" / "tritonserver", folder / "python"
        python.mkdir()
        version = self.wheel.parent.name.removeprefix("python")
        sources = [
            *(server / "backends" / "python").glob("*.*"),
            server / f"python_backend_stubs/{version}/{STUB}",
        ]
        for source in sources:
            Path(shutil.copy(source, python)).chmod(0o755)
        return folder

    def caches(self) -> Path | None:
        """Return the folder of response caches; None where the server has its own."""
        return None if self.wheel is None else self.wheel / "pytriton" / "tritonserver" / "caches"


def find_server() -> Installation:
    """Return the `tritonserver` of PATH, else that of .venv/triton; raises TritonServerError."""
    if found := shutil.which("tritonserver"):
        return Installation(Path(found))
    for wheel in sorted((ROOT / ".venv" / "triton" / "lib").glob("python3.*/site-packages")):
        binary = wheel / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        if binary.exists():
            return Installation(binary, wheel)
    raise TritonServerError(
        "no tritonserver on PATH and none in .venv/triton; run in NVIDIA's container, or `make setup` on "
        "Linux x86-64"
    )


@dataclass
class TritonServer:
    """A server under way. `http`, `grpc` and `metrics_port` are on the loopback interface."""

    process: "subprocess.Popen[bytes]"
    http_port: int
    grpc_port: int
    metrics_port: int
    log: Path

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def is_ready(self) -> bool:
        """Whether the server and all models it was told to load answer."""
        return _answers(f"http://{self.http}/v2/health/ready")

    def is_live(self) -> bool:
        return _answers(f"http://{self.http}/v2/health/live")

    def metrics(self) -> dict[str, float]:
        """Return every sample of /metrics by its name and labels, as they are written there."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def processes(self) -> list[int]:
        """Return the pids of the server and of all processes that it started and that still run."""
        return [
            pid for pid, (group, state) in _processes().items() if group == self.process.pid and state != "Z"
        ]

    def stubs(self) -> list[int]:
        """Return the pids of the processes that run models."""
        return [pid for pid in self.processes() if STUB in _command(pid)]

    def resident_bytes(self) -> int:
        """Return the memory that the server and its models' processes hold, counting what they share once."""
        return sum(resident_bytes(pid) for pid in self.processes())

    def tail(self, lines: int = 40) -> str:
        """Return the end of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def end(self) -> int:
        """Ask the server to end, and wait until it has answered what is in flight; returns its exit status.

        What is still there after EXIT_SECONDS is killed, with every process it started.
        """
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(EXIT_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the server and every process it started, now."""
        deadline = time.monotonic() + 10
        while self.processes() and time.monotonic() < deadline:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                break
            self.process.poll()
            time.sleep(0.01)
        self.process.wait()


@contextmanager
def start(
    repository: Path,
    *,
    models: Sequence[str] | None = None,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    ready_seconds: float = READY_SECONDS,
    installation: Installation | None = None,
) -> Iterator[TritonServer]:
    """Start a server on a model repository as a deployment should: strict, and without completing configs.

    With `models` (which may be empty) these alone are loaded and the others on request (explicit model
    control), else all. `flags` are given to the server as they are. Raises TritonServerError, with the end
    of its log, when it is not ready in time.
    """
    found = installation or find_server()
    with tempfile.TemporaryDirectory(prefix="flowturbo-triton-") as name:
        folder = Path(name)
        server = _launch(found, repository, folder, [*_control(models), *flags], environment or {})
        try:
            _wait_until_ready(server, ready_seconds)
            yield server
        finally:
            try:
                if server.process.poll() is None:
                    server.end()
            finally:
                server.kill()
                for left in SHARED_MEMORY.glob(f"{folder.name}*"):
                    left.unlink(missing_ok=True)


def _launch(
    found: Installation, repository: Path, folder: Path, flags: Sequence[str], environment: Mapping[str, str]
) -> TritonServer:
    http, grpc, metrics = free_ports(3)
    (folder / "backends").mkdir()
    command = [str(found.binary), "--model-repository", str(repository), "--http-address=127.0.0.1"]
    command += [f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}"]
    command += ["--metrics-address=127.0.0.1", f"--metrics-port={metrics}"]
    command += ["--disable-auto-complete-config", "--strict-readiness=true", "--exit-on-error=true"]
    # Named, so that what a killed server leaves of it can be told from that of others.
    command += [f"--backend-config=python,shm-region-prefix-name={folder.name}"]
    if backends := found.backends(folder / "backends"):
        command += [f"--backend-directory={backends}"]
    if caches := found.caches():
        command += [f"--cache-directory={caches}"]
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *flags],
            env=found.environment() | dict(environment),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # A group of its own: its models' processes are found and ended by it.
            start_new_session=True,
        )
    return TritonServer(process, http, grpc, metrics, log)


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that nobody listens on."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            if port not in ports and probe.connect_ex(("127.0.0.1", port)) != 0:
                ports.append(port)
    return ports


def _control(models: Sequence[str] | None) -> list[str]:
    if models is None:
        return []
    return ["--model-control-mode=explicit", *(f"--load-model={model}" for model in models)]


def _wait_until_ready(server: TritonServer, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not server.is_ready():
        status = server.process.poll()
        if status is not None or time.monotonic() > deadline:
            told = f"is not ready after {seconds:g} s" if status is None else f"ended with status {status}"
            raise TritonServerError(f"tritonserver {told}; its log ends:\n{server.tail()}")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _processes() -> dict[int, tuple[int, str]]:
    """Return process group and state of every process, by pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # After the name, which may hold anything: state, parent, group.
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        found[int(folder.name)] = int(group), state
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def resident_bytes(pid: int) -> int:
    """Return the memory a process holds, with its share of what it shares; 0 if there is no such process."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
