"""Faults of the pipe and of the host, under load: nothing is lost, nothing is done twice."""
