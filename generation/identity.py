"""What decides the images of a bundle with a schedule."""

import hashlib
import json
from dataclasses import asdict

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.manifest_json import to_json

# Schedules and tables may be given to a bundle while images are made with another schedule.
AMENDED = ("programs", "tables", "default_schedule")


def identity(manifest: Manifest, schedule: str) -> str:
    """Return the sha256 of a manifest without its schedules, but with the table that `schedule` names."""
    described = {name: value for name, value in json.loads(to_json(manifest)).items() if name not in AMENDED}
    table = manifest.schedule(schedule).table
    described["table"] = None if table is None else asdict(table)
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
