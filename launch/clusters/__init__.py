"""`maverick launch`: jobs for this machine, SLURM, Kubernetes and SkyPilot, as files to read and change."""
