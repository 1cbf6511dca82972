"""Where a run's wall time goes: its record on disk, the classes of its seconds, and what the processes and devices took."""
