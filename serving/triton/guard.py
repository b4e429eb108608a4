"""What ends a server whose model's process has died, so that whoever supervises it starts it anew.

Since release 24.06 Triton does not start such a process again: the server goes on calling itself ready,
and every request to the model fails (github.com/triton-inference-server/server/issues/8604).
"""

import os
import subprocess

# A line from the model is its farewell; the end of the pipe without one is its death. A shell, as it is
# small, and shares nothing with the process that it outlives.
_SCRIPT = 'read -r farewell || { echo "$1" >&2; kill -TERM "$2"; }'


class Guard:
    """Watches over the calling process, a model's, from one of its own.

    Made when a model has been loaded, and no earlier: one that fails to load is no reason to end a server.
    """

    def __init__(self, model: str) -> None:
        told = f"flowturbo_trt: the process of model {model} has died; ending the server, which cannot go on"
        command = ["/bin/sh", "-c", _SCRIPT, "guard", told, str(os.getppid())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)

    def dismiss(self) -> None:
        """Let the calling process end."""
        self._process.communicate(b"farewell\n")
