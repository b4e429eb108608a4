"""`tune`: time the engines, find the true ends, search, and judge and time what was found."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from flowturbo_trt.bundle.store import sha256
from flowturbo_trt.calibration.endpoints import (
    CalibrationError,
    Endpoints,
    Progress,
    find_endpoints,
    make_rows,
)
from flowturbo_trt.calibration.tune.candidates import Candidate
from flowturbo_trt.calibration.tune.errors import JournalError
from flowturbo_trt.calibration.tune.journal import Journal, kept
from flowturbo_trt.calibration.tune.latency import LatencyModel, measure_engines, time_calls
from flowturbo_trt.calibration.tune.preparation import Preparation
from flowturbo_trt.calibration.tune.results import Latency, Result, Tuned
from flowturbo_trt.calibration.tune.search import Search
from flowturbo_trt.calibration.tune.trials import Errors, Trials
from flowturbo_trt.evaluation.pareto import pareto_front
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.runtime.request import Request
from flowturbo_trt.sampling.program import Program

JOURNAL, ENDS = "journal.jsonl", "ends.npy"


def tune(prepared: Preparation, out: Path, progress: Progress) -> Tuned:
    """Search, going on from what the journal in the folder `out` holds.

    Raises JournalError, and CalibrationError where trajectories do not stay finite.
    """
    with kept(out / JOURNAL, prepared.settings()) as journal:
        return _Work(prepared, journal, out, progress).tune()


@dataclass(frozen=True)
class _Work:
    """What is measured, or taken from the journal."""

    prepared: Preparation
    journal: Journal
    out: Path
    progress: Progress

    def tune(self) -> Tuned:
        """Do all of it."""
        prepared, options = self.prepared, self.prepared.options
        judge = self.judge()
        models = self.models()
        trials = Trials(prepared.pipelines, self.endpoints(), options.trajectories, self.journal)
        errors = self.own_errors(trials)
        own = list(errors)
        largest = max(max(p.manifest.batches) for p in prepared.pipelines.values())
        search = Search(prepared.spaces, models, trials, options, largest, self.progress)
        best = [tried.candidate for tried in search.run(own)]
        errors |= self.held_out(trials, [c for c in best if c not in errors])
        front = pareto_front([c for c in errors if c not in own], lambda c: self.values(c, models, errors))
        latencies = self.latencies([*own, *front])
        results = [
            Result(
                candidate,
                dict(candidate.schedule.evaluations()),
                errors[candidate],
                latencies[candidate],
                models[candidate.engines].ms(self.program(candidate)),
                None if judge is None else judge(candidate),
            )
            for candidate in (*own, *front)
        ]
        return Tuned(models, results[len(own) :], results[: len(own)], list(search.tried.values()))

    def program(self, candidate: Candidate) -> Program:
        engines = self.prepared.engines[candidate.engines]
        return find_program(engines.pipeline.manifest, candidate.schedule, engines.space.variant)

    def judge(self) -> Callable[[Candidate], float] | None:
        """Return what gives FID, where it is asked for."""
        if self.prepared.options.fid is None:
            return None
        # It brings torch, which a search does without.
        from flowturbo_trt.calibration.tune.fid import open_judge

        return open_judge(self.prepared, self.journal, self.progress)

    def own(self) -> list[Candidate]:
        """Return the schedules that the bundle had when the search began, its default first.

        A search may add one: started again it would otherwise be another search.
        """
        prepared = self.prepared
        manifest, texts = prepared.engines[prepared.main].pipeline.manifest, self.journal.get(("own",))
        if texts is None:
            texts = list(dict.fromkeys([manifest.default_schedule, *manifest.programs]))
            self.journal.put(("own",), texts)
        return [Candidate(prepared.main, manifest.schedule(text)) for text in texts]

    def own_errors(self, trials: Trials) -> dict[Candidate, Errors]:
        """Return the held-out errors of own schedules, the default's first, of those that stay finite.

        Raises CalibrationError where the default does not: everything is told beside it.
        """
        default, *others = self.own()
        found = self.held_out(trials, [default, *others])
        if default not in found:
            raise CalibrationError(f"{default.schedule} does not stay finite; look at the bundle with verify")
        return found

    def models(self) -> dict[str, LatencyModel]:
        """Return the engines' times."""
        found = self.journal.get(("models",))
        if found is None:
            self.progress("timing the engines", 0, 1)
            prepared = self.prepared
            measured = measure_engines(
                prepared.pipelines, prepared.spaces, self._timed_request(), prepared.options.stability
            )
            found = {name: asdict(model) for name, model in measured.items()}
            # A quieter machine gets another chance.
            if all(model.stable for model in measured.values()):
                self.journal.put(("models",), found)
            self.progress("timed the engines", 1, 1)
        return {name: LatencyModel(**model) for name, model in found.items()}

    def endpoints(self) -> Endpoints:
        """Return where the rows truly end."""
        prepared, file = self.prepared, self.out / ENDS
        known: str | None = self.journal.get(("ends",))
        pipeline = prepared.pipelines[prepared.truest]
        if known is None:
            found = find_endpoints(pipeline, prepared.request, prepared.options.reference, self.progress)
            np.save(file, found.latents)
            self.journal.put(("ends",), sha256(file))
            return found
        if not file.is_file() or sha256(file) != known:
            raise JournalError(
                f"{file}: is missing or altered, and the journal's errors were measured from it; restore it, "
                "or give another --out"
            )
        noise = np.empty((len(prepared.request), *pipeline.manifest.model.latent), dtype=np.float32)
        prepared.request.fill_noise(slice(0, len(noise)), noise)
        return Endpoints(prepared.request, noise, np.load(file, allow_pickle=False))

    def held_out(self, trials: Trials, candidates: Sequence[Candidate]) -> dict[Candidate, Errors]:
        """Return the held-out errors of candidates, of those that stay finite there."""
        found = {}
        what = f"judging {len(candidates)} schedules on {self.prepared.options.held_out} further noises"
        for done, candidate in enumerate(candidates):
            self.progress(what, done, len(candidates))
            found[candidate] = trials.held_out(candidate)
        self.progress(what, len(candidates), len(candidates))
        return {candidate: errors for candidate, errors in found.items() if np.isfinite(errors).all()}

    def values(
        self, candidate: Candidate, models: dict[str, LatencyModel], errors: dict[Candidate, Errors]
    ) -> tuple[float, float]:
        return (models[candidate.engines].ms(self.program(candidate)), float(errors[candidate].mean()))

    def latencies(self, candidates: Sequence[Candidate]) -> dict[Candidate, Latency]:
        """Time candidates in turn."""
        key = ("latencies", *(list(candidate.key) for candidate in candidates))
        found = self.journal.get(key)
        if found is None:
            self.progress(f"timing {len(candidates)} schedules in turn", 0, 1)
            calls = {" ".join(c.key): (self.prepared.pipelines[c.engines], c.schedule) for c in candidates}
            timings = time_calls(calls, self._timed_request(), self.prepared.options.stability)
            scale = 1000 / self.prepared.batch
            found = [
                (scale * t.median, [_finite(scale * end) for end in t.interval], t.stable)
                for t in timings.values()
            ]
            if all(timing.stable for timing in timings.values()):
                self.journal.put(key, found)
            self.progress("timed them", 1, 1)
        return {
            candidate: Latency(ms, (_infinite(low, -math.inf), _infinite(high, math.inf)), stable)
            for candidate, (ms, (low, high), stable) in zip(candidates, found, strict=True)
        }

    def _timed_request(self) -> Request:
        """Return the rows of timed calls: guided ones, as programs count them, unless the search has none."""
        prepared = self.prepared
        manifest = prepared.engines[prepared.main].pipeline.manifest
        scales = sorted({float(scale) for scale in prepared.request.guidance})
        guided = [scale for scale in scales if scale != 1]
        return make_rows(manifest, prepared.batch, prepared.options.seed, guided or scales)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _infinite(value: float | None, instead: float) -> float:
    return instead if value is None else value
