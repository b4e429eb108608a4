"""The model that streams previews: a response after each step, the finished image as the last one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.pipeline import Step
from flowturbo_trt.runtime.request import RequestError
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.serving.triton.answers import cancelled, internal, invalid, log_failure, tensors_of
from flowturbo_trt.serving.triton.batch import count_run
from flowturbo_trt.serving.triton.cancellation import CancelledError, Watch
from flowturbo_trt.serving.triton.guard import Guard
from flowturbo_trt.serving.triton.instance import open_instance
from flowturbo_trt.serving.triton.metrics import Metrics, StageTimer
from flowturbo_trt.serving.triton.requests import Group, group_rows, read_rows


class TritonPythonModel:
    """Answers requests one after the other, each with as many responses as its schedule has steps."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle of the previewed model's same version; raises BackendError without a decoder."""
        self._instance = open_instance(args)
        if not self._instance.decodes:
            raise BackendError("the bundle has no decoder to preview with; build it with --decoder")
        self._metrics = Metrics(self._instance.model, self._instance.version)
        self._guard = Guard(self._instance.model)

    def execute(self, requests: Sequence[Any]) -> None:
        """Stream the answer to every request; a mistake in one is told to that one alone."""
        for request in requests:
            sender = request.get_response_sender()
            if error := self._stream(request, sender):
                _send(sender, pb_utils.InferenceResponse(output_tensors=[], error=error), last=True)

    def finalize(self) -> None:
        """Give back what the instance holds."""
        self._guard.dismiss()
        self._metrics.close()
        self._instance.pipeline.close()

    def _stream(self, request: Any, sender: Any) -> Any:
        """Send a request's previews and images; returns the error where it has come to one."""
        try:
            group = self._read(request)
        except FlowTurboError as error:
            return invalid(self._metrics, error)
        try:
            self._generate(group, Watch({0: request}), sender)
        except CancelledError:
            return cancelled(self._metrics)
        except Exception as error:  # whatever an engine raises: the next request may go well
            log_failure(error)
            return internal(self._metrics, error)
        return None

    def _read(self, request: Any) -> Group:
        manifest, settings = self._instance.pipeline.manifest, self._instance.settings
        groups = group_rows({0: read_rows(tensors_of(request), manifest, settings.schedules)})
        if len(groups) > 1:
            raise RequestError(
                "rows of several schedules, or with guidance 1 and another, have steps of their own; ask for "
                "their previews one by one"
            )
        return groups[0]

    def _generate(self, group: Group, watch: Watch, sender: Any) -> None:
        rows, batches = len(group), self._instance.pipeline.manifest.batches
        # In one batch, whatever that costs: a response is about all rows.
        whole = group.filled(min(batch for batch in batches if batch >= rows))
        timer, steps = StageTimer(self._metrics), 0

        def on_step(step: Step) -> None:
            nonlocal steps
            timer.end(step.kind)
            watch.poll()
            steps = step.count
            # The last one's would be the image, which is decoded anyway.
            if step.index + 1 < step.count:
                _send(sender, _response(step.preview()[:rows], step.index + 1, step.count, step.s))
                timer.end("preview")

        generated = self._instance.pipeline.generate(whole.request, whole.schedule, on_step=on_step)
        timer.end("decode")
        assert generated.images is not None
        count_run(self._metrics, self._instance, whole, rows)
        _send(sender, _response(generated.images[:rows], steps, steps, 1), last=True)


def _response(images: NDArray[np.uint8], step: int, steps: int, time: float) -> Any:
    column = (len(images), 1)
    tensors = {
        "image": images,
        "step": np.full(column, step, dtype=np.int32),
        "steps": np.full(column, steps, dtype=np.int32),
        "time": np.full(column, time, dtype=np.float32),
    }
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])


def _send(sender: Any, response: Any, *, last: bool = False) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
