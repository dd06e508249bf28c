"""Factors at the steps where they matter: first, last and the ones between regimes."""

import math

import pytest

from em.config.schema import KLScheduleConfig, OptimizerConfig
from em.modules.schedules import kl_factor, lr_factor


def test_constant_kl() -> None:
    assert [kl_factor(KLScheduleConfig(), step, 10) for step in (0, 5, 9)] == [1.0, 1.0, 1.0]


def test_kl_is_removed_at_a_step() -> None:
    schedule = KLScheduleConfig("off_at", step=3)
    assert [kl_factor(schedule, step, 6) for step in range(6)] == [1, 1, 1, 0, 0, 0]
    assert kl_factor(KLScheduleConfig("off_at", step=0), 0, 6) == 0


def test_linear_kl_meets_both_ends() -> None:
    schedule = KLScheduleConfig("linear", start=2.0, end=0.5)
    assert kl_factor(schedule, 0, 7) == 2.0
    assert kl_factor(schedule, 3, 7) == 1.25
    assert kl_factor(schedule, 6, 7) == 0.5
    assert kl_factor(schedule, 0, 1) == 2.0


def test_warm_up_rises_to_one() -> None:
    optimizer = OptimizerConfig(warmup_steps=4, schedule="constant")
    assert [lr_factor(optimizer, step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert lr_factor(OptimizerConfig(warmup_steps=0, schedule="constant"), 0, 10) == 1.0


def test_decay_reaches_zero_after_the_last_step() -> None:
    linear = OptimizerConfig(warmup_steps=2, schedule="linear")
    assert lr_factor(linear, 2, 12) == 1.0
    assert lr_factor(linear, 7, 12) == pytest.approx(0.5)
    assert lr_factor(linear, 11, 12) == pytest.approx(0.1)
    cosine = OptimizerConfig(warmup_steps=2, schedule="cosine")
    assert lr_factor(cosine, 2, 12) == 1.0
    assert lr_factor(cosine, 7, 12) == pytest.approx(0.5)
    assert lr_factor(cosine, 11, 12) == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    for optimizer in (linear, cosine):
        # LambdaLR asks for the factor after the last step too.
        assert lr_factor(optimizer, 12, 12) == pytest.approx(0.0)
        assert lr_factor(optimizer, 40, 12) == pytest.approx(0.0)
        assert all(lr_factor(optimizer, step, 12) > 0 for step in range(12))


def test_a_run_shorter_than_its_warm_up() -> None:
    optimizer = OptimizerConfig(warmup_steps=5)
    assert [lr_factor(optimizer, step, 2) for step in range(3)] == pytest.approx([0.2, 0.4, 0.6])
