"""Where a run's wall time and energy go, and which of its processes is slow."""
