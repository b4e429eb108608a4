import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

# A server and a model's process in it, which says its pid and waits to be told how to end.
MODEL = """
import os, sys
from flowturbo_trt.serving.triton.guard import Guard
guard = Guard("tiny")
print(os.getpid(), flush=True)
if sys.stdin.readline() == "dismiss\\n":
    guard.dismiss()
"""
SERVER = """
import subprocess, sys, time
model = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
model.wait()
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", SERVER, MODEL, str(request.param)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("server", [60], indirect=True)
def test_server_is_ended_when_the_model_dies(server: "subprocess.Popen[str]") -> None:
    assert server.stdout is not None
    os.kill(int(server.stdout.readline()), signal.SIGKILL)
    assert server.wait(20) == -signal.SIGTERM
    assert server.stderr is not None
    assert server.stderr.readline().startswith("flowturbo_trt: the process of model tiny has died;")


@pytest.mark.parametrize("server", [0.5], indirect=True)
def test_server_goes_on_when_the_model_takes_its_leave(server: "subprocess.Popen[str]") -> None:
    _, errors = server.communicate("dismiss\n", timeout=20)
    assert server.returncode == 0
    assert errors == ""
