"""A device in host memory with the weakest order that CUDA promises.

A wait that is missing, host memory reused too early or an address that is stale shows as a wrong result
or an error, under one of the POLICIES at least; a right program gives one result under all of them.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.runtime.device import CaptureError, DeviceArray, DeviceError
from flowturbo_trt.tests.emulated_kernels import HostKernel, compile_for_host
from flowturbo_trt.tests.emulated_memory import POISON, EmulatedMemory, host_bytes, root
from flowturbo_trt.tests.emulated_streams import Capture, Mark, Policy, Scheduler, Stream, Wait, Work


@dataclass
class Counters:
    """What was asked for so far, work in captured graphs not included, and what exists now."""

    allocations: int = 0
    live_allocations: int = 0
    live_bytes: int = 0
    live_pinned: int = 0
    live_streams: int = 0
    live_events: int = 0
    live_graphs: int = 0
    uploads: int = 0
    downloads: int = 0
    copies: int = 0
    launches: int = 0
    graph_launches: int = 0


class EmulatedDevice:
    """A Device (runtime.device) whose memory is the host's; errors of work show where the host waits.

    `memory_limit` can be changed at any time.
    """

    def __init__(
        self,
        policy: Policy = "lazy",
        *,
        seed: int = 0,
        memory_limit: int = 2**30,
        capability: tuple[int, int] = (9, 0),
    ) -> None:
        self.index = 0
        self.name = "emulated GPU"
        self.capability = capability
        self._memory = EmulatedMemory(memory_limit)
        self._scheduler = Scheduler(policy, seed)
        self._handles = itertools.count(1)
        self._pinned: dict[int, NDArray[np.uint8]] = {}
        self._streams: dict[int, Stream] = {}
        self._events: dict[int, Mark | None] = {}
        self._kernels: dict[int, HostKernel] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._captures: dict[int, Capture] = {}  # by the thread that captures
        self._asked = Counters()

    @property
    def counters(self) -> Counters:
        """Return a snapshot of the counters."""
        return Counters(
            **vars(self._asked)
            | {
                "allocations": self._memory.allocations,
                "live_allocations": self._memory.live_allocations,
                "live_bytes": self._memory.live_bytes,
                "live_pinned": len(self._pinned),
                "live_streams": len(self._streams),
                "live_events": len(self._events),
                "live_graphs": len(self._graphs),
            }
        )

    @property
    def memory_limit(self) -> int:
        return self._memory.limit

    @memory_limit.setter
    def memory_limit(self, limit: int) -> None:
        self._memory.limit = limit

    def array(self, array: DeviceArray) -> NDArray[Any]:
        """Return what is in the device's memory now, as a view."""
        return self._memory.view(array.address, array.nbytes).view(array.dtype).reshape(array.shape)

    def memory(self) -> tuple[int, int]:
        return max(0, self.memory_limit - self._memory.live_bytes), self.memory_limit

    def allocate(self, size: int) -> int:
        self._forbid_in_capture("allocating")
        return self._memory.allocate(size)

    def free(self, address: int) -> None:
        self._forbid_in_capture("freeing")
        self._memory.free(address)

    def allocate_pinned(self, size: int) -> NDArray[np.uint8]:
        self._forbid_in_capture("allocating")
        if size <= 0:
            raise DeviceError(f"cannot allocate {size} bytes")
        array = np.full(size, POISON, np.uint8)
        self._pinned[array.ctypes.data] = array
        return array

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        self._forbid_in_capture("freeing")
        self._pinned.pop(_known(array.ctypes.data, self._pinned, "pinned memory"))[:] = POISON

    def create_stream(self) -> int:
        return self._add(self._streams, Stream())

    def destroy_stream(self, stream: int) -> None:
        # What was asked of it is done nevertheless, as on a GPU.
        del self._streams[_known(stream, self._streams, "stream")]

    def create_event(self) -> int:
        return self._add(self._events, None)

    def destroy_event(self, event: int) -> None:
        del self._events[_known(event, self._events, "event")]

    def record(self, event: int, stream: int) -> None:
        known, found = _known(event, self._events, "event"), self._stream(stream)
        capture = self._captured(found)
        mark = self._events[known] = Mark(found, captured=capture is not None)
        if capture is not None:
            capture.marks.append(mark)
        else:
            self._scheduler.submit(found, mark)

    def wait(self, stream: int, event: int) -> None:
        mark, found = self._events[_known(event, self._events, "event")], self._stream(stream)
        capture = self._captured(found)
        if capture is not None:
            if mark not in capture.marks:
                self._fail_capture("its stream waits for an event from before the capture")
        elif mark is not None:
            self._forbid_captured(mark)
            self._scheduler.submit(found, Wait(mark))

    def synchronize(self, event: int) -> None:
        self._forbid_in_capture("waiting on the host")
        mark = self._events[_known(event, self._events, "event")]
        if mark is not None:
            self._forbid_captured(mark)
            self._scheduler.run_until(mark)

    def synchronize_stream(self, stream: int) -> None:
        self._forbid_in_capture("waiting on the host")
        mark = Mark(self._stream(stream))
        self._scheduler.submit(mark.stream, mark)
        self._scheduler.run_until(mark)

    def upload(self, address: int, source: NDArray[Any], stream: int) -> None:
        self._memory.view(address, source.nbytes)
        content = self._host_bytes(source, stream)

        def work() -> None:
            bytes_ = content()
            self._memory.view(address, bytes_.size)[:] = bytes_

        self._ask(stream, work, "uploads")

    def download(self, target: NDArray[Any], address: int, stream: int) -> None:
        self._memory.view(address, target.nbytes)
        if not target.flags.writeable:
            raise DeviceError(f"the array {target.shape} to download to is read-only")
        content = self._host_bytes(target, stream)

        def work() -> None:
            bytes_ = content()
            bytes_[:] = self._memory.view(address, bytes_.size)

        self._ask(stream, work, "downloads")

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        def work() -> None:
            self._memory.view(target, size)[:] = self._memory.view(source, size)

        self._memory.view(target, size)
        self._memory.view(source, size)
        self._ask(stream, work, "copies")

    def load_kernels(self, source: str, names: Sequence[str]) -> Mapping[str, int]:
        self._forbid_in_capture("loading kernels")
        compiled = compile_for_host(source, tuple(names))
        return {name: self._add(self._kernels, kernel) for name, kernel in compiled.items()}

    def launch(
        self, kernel: int, blocks: tuple[int, int], threads: int, arguments: Sequence[int], stream: int
    ) -> None:
        found = self._kernels[_known(kernel, self._kernels, "kernel")]
        given = tuple(arguments)
        found.check(blocks, threads, given)

        def check() -> None:
            for address in given:
                self._memory.check(address)

        def work() -> None:
            check()
            found(blocks, threads, given)
            check()

        self._ask(stream, work, "launches")

    def enqueue_host(self, stream: int, function: Callable[[], None]) -> None:
        """Let a stream run a Python function, as what an engine does there."""
        self._ask(stream, function)

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        self._forbid_in_capture("capturing")
        capture = self._captures[get_ident()] = Capture(self._stream(stream))
        try:
            work()
        finally:
            del self._captures[get_ident()]
        if capture.fault is not None:
            raise CaptureError(capture.fault)
        return self._add(self._graphs, capture.work)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._forbid_in_capture("launching a graph")
        work = self._graphs[_known(graph, self._graphs, "graph")]

        def run() -> None:
            for one in work:
                one()

        self._ask(stream, run, "graph_launches")

    def destroy_graph(self, graph: int) -> None:
        del self._graphs[_known(graph, self._graphs, "graph")]

    def _ask(self, stream: int, work: Callable[[], None], counter: str | None = None) -> None:
        found = self._stream(stream)
        capture = self._captured(found)
        if capture is not None:
            capture.work.append(work)
            return
        if counter is not None:
            setattr(self._asked, counter, getattr(self._asked, counter) + 1)
        self._scheduler.submit(found, Work(work))

    def _host_bytes(self, array: NDArray[Any], stream: int) -> Callable[[], NDArray[np.uint8]]:
        if self._captured(self._stream(stream)) and root(array).ctypes.data not in self._pinned:
            self._fail_capture("a copy from or to host memory that is not pinned")
        return host_bytes(array)

    def _stream(self, stream: int) -> Stream:
        return self._streams[_known(stream, self._streams, "stream")]

    def _captured(self, stream: Stream) -> Capture | None:
        return next((one for one in self._captures.values() if one.stream is stream), None)

    def _forbid_in_capture(self, what: str) -> None:
        if get_ident() in self._captures:
            self._fail_capture(f"{what} during a capture")

    def _fail_capture(self, fault: str) -> None:
        # The capture is lost even if the work it happened in goes on.
        if get_ident() in self._captures:
            self._captures[get_ident()].fault = fault
        raise CaptureError(fault)

    def _forbid_captured(self, mark: Mark) -> None:
        if mark.captured:
            self._fail_capture("waiting for an event that was recorded in a capture")

    def _add(self, known: dict[int, Any], thing: object) -> int:
        handle = next(self._handles)
        known[handle] = thing
        return handle


def _known(handle: int, known: Mapping[int, object], kind: str) -> int:
    if handle not in known:
        raise DeviceError(f"{kind} {handle} does not exist")
    return handle
