"""Run what is heavy or timed, write benchmarks/results/ and the README's tables: `make proof`."""

import sys
from pathlib import Path

from flowturbo_trt.benchmarks import digits
from flowturbo_trt.benchmarks.tables import update_readme
from flowturbo_trt.evaluation.report import write_report

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure, write, and exit with 3 if a promise does not hold."""
    figures, checks = digits.measure_in_scratch()
    write_report(RESULTS / "digits.json", figures, checks)
    update_readme()
    for check in checks:
        print(check)
    sys.exit(0 if all(check.met for check in checks) else 3)


if __name__ == "__main__":
    main()
