"""The page on callbacks shows a callback that works and is as short as it says."""

import re
import sys
from pathlib import Path

import pytest

from em import experiment
from em.config import check
from tests.tiny import tiny_config

PAGE = Path(__file__).parents[1] / "docs" / "callbacks.md"


def test_the_callback_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_callbacks.py").write_text(blocks[0], encoding="utf-8")
    body = blocks[0][blocks[0].index("class Entropy") :]
    assert len(body.strip().splitlines()) < 30
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"_target_": "my_callbacks.Entropy", "domain": "soup", "at": ["start", "end"]}
    config = check(tiny_config(tmp_path, callbacks={"entropy": options}))
    run = experiment.train(config)
    rows = [row for row in run.read_metrics() if "entropy/adapted" in row]
    assert [row["step"] for row in rows] == [0, 4]
    assert rows[0]["entropy/adapted"] == rows[0]["entropy/reference"]
    assert rows[1]["entropy/adapted"] != rows[1]["entropy/reference"]
    sys.modules.pop("my_callbacks", None)
