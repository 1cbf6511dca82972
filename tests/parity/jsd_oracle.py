"""What TRL makes of the test logits: values and gradients of its `generalized_jsd_loss`. A program: it prints JSON.

    pip install trl==1.16.0 && python -m tests.parity.jsd_oracle > tests/golden/trl_generalized_jsd.json

An environment of its own is best: TRL brings packages that nothing else here needs.
"""

import json
import pathlib
from typing import Any

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "trl_generalized_jsd.json"
CASES = [(beta, tau) for beta in (0.0, 0.1, 0.5, 0.9, 1.0) for tau in (0.5, 1.0, 2.0)]
"""(beta, temperature)"""


def logits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Student's and teacher's, float32[2, 4, 9], far apart and nearly equal ones; bool[2, 4], which rows count."""
    rng = np.random.default_rng(11)
    student, teacher = (rng.normal(scale=3, size=(2, 4, 9)).astype(np.float32) for _ in range(2))
    teacher[0, 0] = student[0, 0] + 1e-3 * teacher[0, 0]
    counts = np.array([[True, True, False, True], [True, False, True, True]])
    return student, teacher, counts


def golden() -> dict[str, Any]:
    import torch
    import trl
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    student, teacher, counts = logits()
    labels = torch.from_numpy(np.where(counts, 0, -100))
    cases = []
    for beta, temperature in CASES:
        s = torch.from_numpy(student).requires_grad_()
        loss = GKDTrainer.generalized_jsd_loss(s, torch.from_numpy(teacher), labels, beta, temperature)
        loss.backward()
        found = {"loss": loss.item(), "gradient": s.grad.double().numpy().round(8).tolist()}
        cases.append({"beta": beta, "temperature": temperature, **found})
    return {"versions": {"trl": trl.__version__, "torch": torch.__version__.partition("+")[0]}, "cases": cases}


if __name__ == "__main__":
    print(json.dumps(golden()))
