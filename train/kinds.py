"""What a label may be, by name: the field `kinds` of a batch holds places in this list (`data.trajectories.kinds`)."""

from data.trajectories.kinds import TokenKind

NAMES = tuple(kind.name.lower() for kind in sorted(TokenKind))
