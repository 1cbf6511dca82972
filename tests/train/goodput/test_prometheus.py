"""The text file for Prometheus: its format, and that it is replaced as a whole."""

import math
import re

from train.goodput.prometheus import PrometheusFile, exposition

SAMPLE = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*\{[a-z]+="(?:[^"\\\n]|\\.)*"(?:,[a-z]+="(?:[^"\\\n]|\\.)*")*\} \S+')


def test_every_line_is_a_comment_or_a_sample():
    numbers = {"loss": 1.5, "router_load_max/a-b": math.inf, "grad_norm": math.nan}
    text = exposition('a "run"\\\n', numbers, {"step": 2.5, "idle": 0.0})
    lines = text.splitlines()
    assert text.endswith("\n")
    assert all(SAMPLE.fullmatch(line) for line in lines if not line.startswith("# "))
    assert r'maverick_loss{run="a \"run\"\\\n"} 1.5' in lines
    assert [line.rpartition(" ")[2] for line in lines if "router" in line or "grad" in line] == [
        *("gauge", "NaN", "gauge", "+Inf"),
    ]
    assert r'maverick_wall_seconds_total{run="a \"run\"\\\n",class="step"} 2.5' in lines


def test_the_file_has_the_newest_numbers(tmp_path):
    seconds = {"step": 1.0}
    sink = PrometheusFile(tmp_path, lambda: seconds)
    sink.write(1, {"loss": 3.0})
    sink.write(2, {"eval_loss": 2.0})  # too soon after the first
    first = (tmp_path / "metrics.prom").read_text()
    assert "maverick_eval_loss" not in first and 'class="step"} 1.0' in first
    seconds["step"] = 4.0
    sink.close()
    text = (tmp_path / "metrics.prom").read_text()
    assert "maverick_step{" in text and "maverick_loss{" in text and "maverick_eval_loss{" in text
    assert 'class="step"} 4.0' in text
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.prom"]
