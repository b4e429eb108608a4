"""The requests of one call of a served model, from their tensors to their answers."""

from collections.abc import Callable, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from flowturbo_trt.runtime.batching import split
from flowturbo_trt.runtime.pipeline import Step
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.serving.triton.answers import cancelled, internal, invalid, log_failure, tensors_of
from flowturbo_trt.serving.triton.cancellation import CancelledError, Watch
from flowturbo_trt.serving.triton.instance import Instance
from flowturbo_trt.serving.triton.metrics import Metrics, StageTimer
from flowturbo_trt.serving.triton.requests import AskedRows, Group, group_rows, read_rows


class Batch:
    """Requests that the server's dynamic batcher put together; each is answered by itself."""

    def __init__(self, instance: Instance, metrics: Metrics, requests: Sequence[Any]) -> None:
        self._instance = instance
        self._metrics = metrics
        self._requests = requests
        self._asked: dict[int, AskedRows] = {}
        self._outputs: dict[int, NDArray[Any]] = {}
        self._errors: dict[int, Any] = {}
        for number, request in enumerate(requests):
            self._read(number, request)

    def run(self) -> None:
        """Generate what was asked for, all rows together that can be."""
        for group in group_rows(self._asked):
            self._run(group)

    def responses(self) -> list[Any]:
        """Return the answer to every request, in order."""
        return [self._response(number) for number in range(len(self._requests))]

    def _read(self, number: int, request: Any) -> None:
        manifest, settings = self._instance.pipeline.manifest, self._instance.settings
        try:
            asked = read_rows(tensors_of(request), manifest, settings.schedules)
        except FlowTurboError as error:
            self._errors[number] = invalid(self._metrics, error)
            return
        self._asked[number] = asked
        self._outputs[number] = self._instance.empty_rows(len(asked))

    def _run(self, group: Group) -> None:
        waiting = {asker: self._requests[asker] for asker in group.askers if asker not in self._errors}
        if not waiting:
            return
        watch = Watch(waiting) if self._instance.settings.cancellation else None
        try:
            for part in self._parts(group):
                self._generate(part, watch)
        except CancelledError:
            pass
        except Exception as error:  # whatever an engine raises: the next batch may go well
            log_failure(error)
            self._errors |= {asker: internal(self._metrics, error) for asker in waiting}
        if watch is not None:
            gone = watch.cancelled - self._errors.keys()
            self._errors |= {asker: cancelled(self._metrics) for asker in gone}

    def _parts(self, group: Group) -> list[Group]:
        """Split a group into what is run at once.

        Where steps are watched that is a batch, so that what is timed after its last step is its decoding;
        else all of it, whose batches then overlap.
        """
        if not self._instance.settings.cancellation:
            return [group]
        parts, start = [], 0
        for batch in split(len(group), self._instance.pipeline.manifest.batches):
            parts.append(group.part(slice(start, start + batch)))
            start += batch
        return parts

    def _generate(self, part: Group, watch: Watch | None) -> None:
        timer = StageTimer(self._metrics)
        generated = self._instance.pipeline.generate(
            part.request,
            part.schedule,
            decode=self._instance.decodes,
            on_step=None if watch is None else _watching(watch, timer),
        )
        if watch is None:
            timer.end("trajectory")
        elif self._instance.decodes:
            timer.end("decode")
        rows = generated.latents if generated.images is None else generated.images
        for (asker, row), value in zip(part.origins, rows, strict=True):
            self._outputs[asker][row] = value
        count_run(self._metrics, self._instance, part, len(part))

    def _response(self, number: int) -> Any:
        if number in self._errors:
            return pb_utils.InferenceResponse(output_tensors=[], error=self._errors[number])
        tensor = pb_utils.Tensor(self._instance.output, self._outputs[number])
        return pb_utils.InferenceResponse(output_tensors=[tensor])


def count_run(metrics: Metrics, instance: Instance, part: Group, used: int) -> None:
    """Count rows, padding and evaluations of what has been generated, of which `used` rows were asked for."""
    manifest = instance.pipeline.manifest
    batches = split(len(part), manifest.batches)
    metrics.add("flowturbo_rows_total", used)
    metrics.add("flowturbo_padded_rows_total", sum(batches) - used)
    evaluations = find_program(manifest, part.schedule, part.variant).evaluations()
    for (network, variant), count in evaluations.items():
        metrics.add("flowturbo_evaluations_total", count * len(batches), network=network, variant=variant)


def _watching(watch: Watch, timer: StageTimer) -> Callable[[Step], None]:
    def on_step(step: Step) -> None:
        timer.end(step.kind)
        watch.poll()

    return on_step
