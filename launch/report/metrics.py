"""The metrics of a run in words: titles, units, and what each of them means. The plots follow this table."""

import dataclasses
from typing import Literal

Scale = Literal["plain", "engineering", "percent", "scientific"]
Group = Literal["results", "teacher", "training", "experts"]

GROUPS: dict[Group, str] = {
    "results": "Results",
    "teacher": "How the teacher's targets are weighed",
    "training": "Optimization and speed",
    "experts": "Experts",
}
"""Headings of the groups of plots, in their order on the page."""
FOLDED: tuple[Group, ...] = ("teacher", "experts")
"""Groups that a reader opens."""


LOG_FROM = 2.5


@dataclasses.dataclass(frozen=True)
class Curve:
    """Another metric in a plot."""

    key: str
    label: str
    held_out: bool = False
    """Whether it is in evaluation lines."""
    color: int = 0
    """Index of its color; curves of one model share one."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """A metric to plot if the run has it."""

    title: str
    key: str
    unit: str = ""
    about: str = ""
    """One sentence for a reader who does not know the metric."""
    group: Group = "results"
    scale: Scale = "plain"
    label: str = "training"
    """Name of the metric beside other curves."""
    more: tuple[Curve, ...] = ()
    level: float | None = None
    """A reference value, plotted as a dashed line with the note "dashed: `level_is`"."""
    level_is: str = ""
    only_if_positive: bool = False
    logarithmic: bool = False
    """Whether the vertical axis is logarithmic if the values differ by more than `LOG_FROM` times."""
    wide: bool = False
    """Whether it takes the whole width of the page."""


_NATS = "nats per token"
SHARE = "0 to 1"
"""The unit of parts of a whole."""

PLOTS = (
    Plot(
        "Loss",
        "loss",
        _NATS,
        "How badly the model predicts the next token; lower is better.",
        more=(
            Curve("eval_loss", "held out", held_out=True),
            Curve("teacher_loss", "teacher, training", color=1),
            Curve("eval_teacher_loss", "teacher, held out", held_out=True, color=1),
        ),
        logarithmic=True,
        wide=True,
    ),
    Plot(
        "Distance between student and teacher",
        "divergence",
        _NATS,
        "How far apart the two models' predictions are; 0: they are equal.",
        more=(Curve("eval_divergence", "held out", held_out=True),),
        logarithmic=True,
    ),
    Plot(
        "What the student learns from",
        "soft_weight",
        "weight per token",
        "Mean weights of the teacher's targets and of the text in the loss.",
        label="teacher's targets",
        more=(Curve("hard_weight", "the text", color=1),),
    ),
    Plot(
        "The teacher's lead",
        "lead_ema",
        _NATS,
        "The student's loss less the teacher's, as a moving average.",
        level=0.0,
        level_is="as good as each other",
    ),
    Plot(
        "Margin between chosen and rejected sides",
        "margin",
        "nats per pair",
        "How much more the model prefers the chosen side than its reference does.",
        more=(Curve("eval_margin", "held out", held_out=True),),
        level=0.0,
        level_is="no preference",
    ),
    Plot(
        "Pairs in the right order",
        "accuracy",
        SHARE,
        "The part of pairs with a margin above 0.",
        more=(Curve("eval_accuracy", "held out", held_out=True),),
    ),
    Plot(
        "Change of both sides' log-probabilities",
        "chosen_change",
        "nats per side",
        "From the reference to the model. Both may fall while the margin grows.",
        label="chosen",
        more=(Curve("rejected_change", "rejected", color=1),),
        level=0.0,
        level_is="the reference",
    ),
    Plot(
        "Tokens with another first expert",
        "route_change",
        SHARE,
        "The part of tokens whose router prefers another expert than the reference's does.",
        "experts",
    ),
    Plot("Held-out loss by source", "eval_source_loss", _NATS),
    Plot("Loss by kind of token", "kind_loss", _NATS),
    Plot("Held-out loss by kind of token", "eval_kind_loss", _NATS),
    Plot("Decisions in held-out turns", "eval_decision_f1", "F1", "To call a tool, to answer or to ask; 1 is perfect."),
    Plot("Tool calls in held-out turns", "eval_call_rates", "part of the turns"),
    Plot("Scores of tasks", "eval_task_value", "mean score", "From 0 to 1, of the model as it stands."),
    Plot("Distance between hidden states", "hidden_loss", "", "Of the layers that are matched; 0: they are equal."),
    Plot("Distance between routers", "router_divergence", _NATS, "Of the layers that are matched."),
    Plot(
        "The teacher's confidence",
        "confidence",
        SHARE,
        "How sure the teacher is of a token, on average; 1: it expects a single one.",
        "teacher",
    ),
    Plot("Weight of the teacher's lead", "gap", SHARE, "1: far ahead of the student; 0: no better.", "teacher"),
    Plot(
        "Doubt in the teacher",
        "doubt",
        "ratio",
        "The teacher's miscalibration over its lead; there is no estimate while it has no lead.",
        "teacher",
    ),
    Plot(
        "The teacher's miscalibration",
        "error_ema",
        _NATS,
        "Its loss less its entropy, as a moving average; 0: it is as sure as it should be.",
        "teacher",
    ),
    Plot("Entropy of the teacher", "teacher_entropy", _NATS, "How undecided its predictions are.", "teacher"),
    Plot("Share of soft targets", "share", SHARE, "Set by the schedule of objective.weighting.", "teacher"),
    Plot("Ratio of cross-entropy to divergence", "ratio", "ratio", "Both terms pull equally.", "teacher"),
    Plot("Cross-entropy, moving average", "loss_ema", _NATS, "", "teacher"),
    Plot("Divergence, moving average", "divergence_ema", _NATS, "", "teacher"),
    Plot("Target between student and teacher", "interpolation", SHARE, "0: the student; 1: the teacher.", "teacher"),
    Plot("Improvement of the divergence", "improvement", "relative", "As a moving average.", "teacher"),
    Plot("Teacher's mass on its stored tokens", "teacher_mass", "probability", "", "teacher"),
    Plot("Student's mass on the stored tokens", "student_mass", "probability", "", "teacher"),
    Plot("Learning rate", "learning_rate", "", "", "training", "scientific"),
    Plot("Gradient norm", "grad_norm", "before clipping", "", "training", logarithmic=True),
    Plot("Speed", "tokens_per_second", "tokens per second", "", "training", "engineering"),
    Plot(
        "Utilization",
        "mfu",
        "part of the devices' peak",
        "FLOPs that the step needs, over those that the devices could do (MFU).",
        "training",
        "percent",
    ),
    Plot(
        "Goodput so far",
        "goodput",
        "part of the wall time",
        "Updates that count, over all time since the first start.",
        "training",
        "percent",
    ),
    Plot(
        "Time that a process takes by itself",
        "step_seconds_slowest",
        "s per update",
        "Its input pipeline and host, without waiting for devices and other processes.",
        "training",
        label="the slowest process",
        more=(Curve("step_seconds_median", "the median process", color=1),),
    ),
    Plot(
        "Spike score",
        "spike_score",
        "standard deviations",
        "How far loss or gradient norm is above the updates before; above guard.spikes.threshold an update is refused.",
        "training",
    ),
    Plot("Updates skipped so far", "skipped", "updates", "", "training", only_if_positive=True),
    Plot(
        "Load of the busiest expert",
        "router_load_max",
        "times the mean",
        "",
        "experts",
        level=1.0,
        level_is="perfectly even",
    ),
    Plot("Router entropy", "router_entropy", "nats", "How undecided the router is.", "experts", level_is="maximum"),
    Plot("Experts without a token", "router_idle", "part of the experts", "", "experts", "percent"),
    Plot(
        "Tokens that experts dropped",
        "router_dropped",
        "per update",
        "Tokens beyond model.expert_capacity_factor.",
        "experts",
        "engineering",
    ),
    Plot(
        "Balance of the experts",
        "router_balance",
        "auxiliary loss",
        "",
        "experts",
        level=1.0,
        level_is="perfectly even",
    ),
)
NOT_DRAWN = {"step", "kind_tokens", "tokens", "step_seconds", "time", "compile_seconds", "checkpoint_seconds"}
NOT_DRAWN |= {
    "stage",
    "on_policy",
    "router_load",
    "slowest_rank",
    "energy_kwh",
    "co2_kg",
    "co2_kg_market",
    *(curve.key for plot in PLOTS for curve in plot.more),
}
"""Metrics without a plot of their own."""
