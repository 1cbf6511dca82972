"""Conditions of an objective are logged when they begin and when they end."""

import logging

from train.notices import Notices
from train.objectives import Pretrain
from train.objectives.base import Notice


class Alarmed(Pretrain):
    def notices(self, metrics):
        return {} if metrics["x"] is None else {"x": Notice(metrics["x"] > 1, f"x is {metrics['x']}")}


def logged(caplog, values) -> list[str]:
    hook = Notices(Alarmed())
    with caplog.at_level(logging.INFO):
        for i, x in enumerate(values):
            hook.on_metrics(i + 1, {"x": x}, 0.1)
    return [record.getMessage() for record in caplog.records]


def test_a_condition_is_logged_once_when_it_begins_and_once_when_it_ends(caplog):
    said = logged(caplog, [0, 2, 3, None, 4, 0, 0, 5])
    assert said == ["step 2: x is 2", "step 6: x is 0", "step 8: x is 5"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]


def test_a_condition_that_never_begins_is_not_logged(caplog):
    assert logged(caplog, [0, None, 1, 0]) == []


def test_an_objective_without_conditions_logs_nothing(caplog):
    with caplog.at_level(logging.INFO):
        Notices(Pretrain()).on_metrics(1, {"loss": 1.0}, 0.1)
    assert not caplog.records
