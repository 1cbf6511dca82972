"""`maverick launch`: jobs for this machine, SLURM, Kubernetes and SkyPilot, as files that a person can read and change."""
