"""What tfnorm costs beside what a user would take instead; `python -m benchmarks.NAME`."""
