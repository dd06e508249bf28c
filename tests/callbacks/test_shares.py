"""Dividing over processes: a failure in one is a failure in all, and what cannot be divided says so."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from em.backbone import Backbone
from em.callbacks._choices import refuse_sharded_noise
from em.callbacks._shares import enough_pairs, together
from em.callbacks.base import RunContext
from em.errors import AdapterError, MeasurementError
from em.interventions.base import Intervention


def context(other: Any, world_size: int = 2) -> RunContext:
    """The first process of two, whose second one has `other` to tell."""
    fake = SimpleNamespace(world_size=world_size, rank=0, gather=lambda value: [value, other][:world_size])
    return cast(RunContext, fake)


def fails() -> int:
    raise AdapterError("own")


def test_results_come_in_rank_order() -> None:
    assert together(context((2, None)), lambda: 1) == [1, 2]


def test_a_failure_elsewhere_is_raised_here() -> None:
    with pytest.raises(MeasurementError, match="theirs"):
        together(context((None, "theirs")), lambda: 1)
    with pytest.raises(MeasurementError, match="own"):
        together(context((2, None)), fails)
    with pytest.raises(AdapterError, match="own"):
        together(context(None, world_size=1), fails)


def test_fewer_pairs_than_processes() -> None:
    with pytest.raises(MeasurementError, match="1 pairs cannot be divided over 2 processes"):
        enough_pairs(context(None), [cast(Any, None)])


def test_a_sharded_lora_has_no_noise() -> None:
    sharded = cast(Backbone, SimpleNamespace(sharded=True))
    with pytest.raises(MeasurementError, match="fsdp2 a LoRA cannot be perturbed; fix"):
        refuse_sharded_noise(sharded, cast(Intervention, SimpleNamespace(kind="lora")), "fix")
    refuse_sharded_noise(sharded, cast(Intervention, SimpleNamespace(kind="full_finetune")), "fix")
