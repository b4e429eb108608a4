"""Recordings of what networks see along the trajectories that will be deployed."""
