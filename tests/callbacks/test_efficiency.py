"""Efficiency: at factor 1 the loss is that of the held-out rows, at 0 the reference's."""

import pytest

from em.runs import RunDirectory
from tests.callbacks.logged import logged


def test_losses_are_those_of_the_domains(measured: RunDirectory) -> None:
    rows, domains = logged(measured, "efficiency"), logged(measured, "domains")
    assert [row["step"] for row in rows] == [0, 2, 4, 4]
    for row, other in zip(rows, domains, strict=True):
        assert row["loss"] == pytest.approx(other["soup/loss"], abs=1e-6)
        assert row["loss_reference"] == pytest.approx(other["soup/loss_reference"], abs=1e-6)
    for row in rows[1:]:
        assert row["loss_at_1"] == row["loss"]
        assert row["loss_at_0"] == row["loss_reference"]
        assert row["gain_per_norm"] == pytest.approx((row["loss_reference"] - row["loss"]) / row["norm"])


def test_before_the_first_step_there_is_no_norm_to_rescale(measured: RunDirectory) -> None:
    first = logged(measured, "efficiency")[0]
    assert first["norm"] == 0 and first["loss"] == first["loss_reference"]
    assert first["gain_per_norm"] is None and first["loss_at_2"] is None


def test_the_table_is_that_of_a_comparison_with_one_solution(measured: RunDirectory) -> None:
    table, last = measured.read_table("efficiency"), logged(measured, "efficiency")[-1]
    row = table["solutions"]["measured"]
    assert table["domain"] == "soup" and table["step"] == 4 and table["differences"] == []
    assert row["norms"] == pytest.approx([factor * last["norm"] for factor in (0, 0.5, 1, 1.5, 2)])
    assert row["loss"][2] == pytest.approx(last["loss"]) and row["low"][2] < row["loss"][2] < row["high"][2]
    assert last["norm"] == measured.manifest()["norm"]
