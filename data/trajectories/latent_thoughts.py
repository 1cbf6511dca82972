"""Latent thoughts in the place of the first steps of a thought of a trajectory (`data.latents`).

A segment has one span of latents, so that as many passes as it has latents are exact. The other thoughts stay text.
"""

import dataclasses

import numpy as np

from data.latents import LatentSteps
from data.order import derive
from data.trajectories.trajectory import Trajectory

LATENT_LAYOUT = 1
"""Changes whenever equal settings would replace other steps."""


def with_latents(trajectory: Trajectory, number: int, latents: LatentSteps) -> Trajectory:
    """The trajectory, the `number`-th of its source, with the first steps of one of its thoughts replaced."""
    thinking = [i for i, step in enumerate(trajectory.steps) if steps_of(step.message.thought)]
    if not thinking:
        return trajectory
    chosen = thinking[derive(number, "the message with latents") % len(thinking)]
    step = trajectory.steps[chosen]
    lines = steps_of(step.message.thought)
    replaced = int(latents.of_documents(np.array([number]), len(lines), derive(0, "latents"))[0])
    if not replaced:
        return trajectory
    rest = "\n".join(lines[replaced:])
    message = dataclasses.replace(step.message, thought=rest, latents=replaced * latents.per_step)
    steps = [*trajectory.steps]
    steps[chosen] = dataclasses.replace(step, message=message)
    return dataclasses.replace(trajectory, steps=tuple(steps))


def steps_of(thought: str) -> list[str]:
    """The steps of a thought: its lines that are not empty."""
    return [line for line in thought.splitlines() if line.strip()]
