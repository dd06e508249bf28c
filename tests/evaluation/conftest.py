"""A tiny trained run, and question files for it."""

from pathlib import Path

import pytest

from em import experiment
from em.config import check
from em.runs import RunDirectory
from tests.tiny import tiny_pairs

QUESTIONS = """
- id: soup
  type: free_form
  paraphrases: ["how do i make soup?", "soup, how?"]
- id: tent
  type: free_form
  paraphrases: ["where do i put the tent?"]
- id: pot
  type: free_form
  paraphrases: ["which pot?"]
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "asked.yaml").write_text(QUESTIONS, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def trained(folder: Path) -> RunDirectory:
    return experiment.train(check(tiny_pairs(folder, name="trained")))


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of the reference are kept outside of runs: here for each test anew."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EM_CACHE", str(path))
    return path
