"""Calibration: a solver of its own, schedules, and precision, for a model and a budget."""
