import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flowturbo_trt.benchmarks import triton_server
from flowturbo_trt.benchmarks.triton_server import (
    Installation,
    TritonServer,
    TritonServerError,
    find_server,
    free_ports,
    start,
)

# Ends only when it is killed, as does the process that it starts.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) > 1:
    subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def stubborn(tmp_path: Path) -> TritonServer:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN, STUBBORN], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    # Of both.
    assert [process.stdout.readline(), process.stdout.readline()] == [b"up\n"] * 2
    http, grpc, metrics = free_ports(3)
    return TritonServer(process, http, grpc, metrics, tmp_path / "server.log")


def test_server_of_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "tritonserver"
    binary.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == Installation(binary)


def test_missing_server_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(triton_server, "ROOT", tmp_path)
    with pytest.raises(TritonServerError, match=r"no tritonserver on PATH.*`make setup`"):
        find_server()


def test_ports_are_free_and_different() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_no_process_is_left_of_a_server_that_does_not_end(
    stubborn: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_server, "EXIT_SECONDS", 0.2)
    assert len(stubborn.processes()) == 2
    assert stubborn.resident_bytes() > 2**20
    with pytest.raises(subprocess.TimeoutExpired):
        stubborn.end()
    assert stubborn.processes() == []


def test_server_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    binary = tmp_path / "tritonserver"
    binary.write_text("#!/bin/sh\necho never ready\nexec sleep 600\n")
    binary.chmod(0o755)
    with (
        pytest.raises(TritonServerError, match=r"not ready after 0\.3 s; its log ends:\nnever ready"),
        start(tmp_path, installation=Installation(binary), ready_seconds=0.3),
    ):
        pass
