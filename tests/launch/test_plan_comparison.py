"""The closed form beside the compiled step."""

from launch.plan_comparison import comparison, rows

COMPILED = {
    "bytes": {"peak": 100},
    "collectives": {
        "all-gather fsdp bf16": {"bytes": 30},
        "all-gather expert bf16": {"bytes": 20},
        "all-to-all expert bf16": {"bytes": 30},
        "ragged-all-to-all expert bf16": {"bytes": 10},
    },
    "flops": {"done": 2e12},
    "seconds": {"compute": 6.0, "step": 5.0},
}
TIME = {"compute": 3.0, "step": 4.0, "flops_done": 1e12}
HELD = {"weights": 60, "activations": 30, "sampling": 1000}
SENT = {"gather": 50, "reduce_scatter": 0, "all_to_all": 30, "all_reduce": 7}


def test_quantities_stand_beside_each_other():
    found = comparison(COMPILED, TIME, HELD, SENT)
    ratios = {name: entry["ratio"] for name, entry in found.items()}
    expected = {"peak": 0.9, "gather": 1.0, "all_to_all": 0.75, "all_reduce": None, "flops": 0.5}
    assert ratios == expected | {"compute": 0.5, "step": 0.8}
    lines = dict(rows(found))
    assert lines["  peak"] == "90 B / 100 B  0.900" and lines["  flops"] == "1 TFLOP / 2 TFLOP  0.500"
    assert lines["  all_reduce"] == "7 B / 0 B"
