"""Calibration of precision, schedule and solver: nothing here yet."""
