"""The model inside a Triton server: labels and seeds in, images out, over a pipeline of the runtime."""

from collections.abc import Mapping, Sequence
from typing import Any

from flowturbo_trt.serving.triton.batch import Batch
from flowturbo_trt.serving.triton.guard import Guard
from flowturbo_trt.serving.triton.instance import open_instance
from flowturbo_trt.serving.triton.metrics import Metrics


class TritonPythonModel:
    """Answers each batch of requests that the server's dynamic batcher hands over."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle of this version; with whatever it raises the server does not become ready."""
        self._instance = open_instance(args)
        self._metrics = Metrics(self._instance.model, self._instance.version)
        self._guard = Guard(self._instance.model)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request, in order; a mistake in one is told to that one alone."""
        batch = Batch(self._instance, self._metrics, requests)
        batch.run()
        return batch.responses()

    def finalize(self) -> None:
        """Give back what the instance holds."""
        self._guard.dismiss()
        self._metrics.close()
        self._instance.pipeline.close()
