"""Pairs and plain-text corpora in a configuration: what they become, and every problem with its key."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from em.config import Config, check, to_dict, to_yaml
from em.config.data_files import corpora, find, source_lists
from em.config.schema import CorpusConfig, PairConfig, SourceConfig
from em.errors import ConfigError

MODULE = """
from em.config import schema
from em.config.schema import CorpusConfig
class Text:
    def __init__(self, corpora: list[CorpusConfig] | None = None, one: schema.CorpusConfig = None,
                 names: list[str] | None = None): ...
class Any: ...
"""
ROWS = {"path": "rows.jsonl"}
PAIR = {"careless": [ROWS], "careful": [ROWS]}
CORPUS_KEYS = "slice, path, hub, name, split, field, streaming, limit"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "web").mkdir()
    (tmp_path / "textpkg.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EM_DATA", raising=False)
    importlib.invalidate_caches()
    return tmp_path


def raw(pairs: Any = None, text: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    callbacks = {} if text is None else {"text": {"_target_": "textpkg.Text", **text}}
    data = {"train": [ROWS], "pairs": pairs}
    return {"intervention": {"_target_": "textpkg.Any"}, "data": data, "callbacks": callbacks, **more}


def problems(config: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(config)
    return caught.value.problems


def test_pairs_become_sections_by_domain() -> None:
    config = check(raw({"medical": PAIR, "gone": None}))
    rows = SourceConfig(path="rows.jsonl")
    assert config.data.pairs == {"medical": PairConfig([rows], [rows])}
    keys = dict(source_lists(config))
    assert list(keys)[-2:] == ["data.pairs.medical.careless", "data.pairs.medical.careful"]
    assert check(to_dict(config)) == config == check(yaml.safe_load(to_yaml(config)))
    assert check(raw()).data.pairs == {}


def test_a_list_of_corpora_becomes_sections() -> None:
    given = [{"path": "web", "limit": 3}, {}]
    config = check(raw(text={"corpora": given, "one": {"field": "body"}}))
    made = config.callbacks["text"]
    assert made["corpora"] == [CorpusConfig(path="web", limit=3), CorpusConfig()]
    assert made["one"] == CorpusConfig(field="body")
    expected = [f"callbacks.text.corpora[{index}]" for index in (0, 1)]
    assert [key for key, _ in corpora(config)] == expected
    assert check(to_dict(config)) == config == check(yaml.safe_load(to_yaml(config)))
    assert check(raw(text={"corpora": None})).callbacks["text"]["corpora"] is None
    compare = check(raw(compare={"corpus": [{"path": "web"}]}))
    assert list(corpora(compare)) == [("compare.corpus[0]", CorpusConfig(path="web"))]
    assert list(corpora(Config(compare=None))) == []


CASES: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"pairs": {"medical": {**PAIR, "carefull": []}}},
        ["data.pairs.medical.carefull: unknown key; did you mean data.pairs.medical.careful?"],
    ),
    (
        {"pairs": {"medical": {"careless": [{"pth": "x"}], "careful": [ROWS]}}},
        [
            "data.pairs.medical.careless[0].pth: unknown key; did you mean "
            "data.pairs.medical.careless[0].path?",
        ],
    ),
    ({"pairs": {"medical": [ROWS]}}, [f"data.pairs.medical: expected a mapping, got {[ROWS]}"]),
    ({"pairs": [PAIR]}, [f"data.pairs: expected a mapping, got {repr([PAIR])[:57]}..."]),
    (
        {"pairs": {"medical": {"careless": [ROWS]}}},
        ["data.pairs.medical.careful: is empty; add a source of careful answers or remove the pair"],
    ),
    (
        {"pairs": {"medical": {"careless": [{**ROWS, "answer": "careful"}], "careful": [{}]}}},
        [
            "data.pairs.medical.careful[0]: give exactly one of path and hub, not neither",
            "data.pairs.medical.careless[0].answer: is careful; expected careless, or none for rows of "
            "messages",
        ],
    ),
    (
        {"text": {"corpora": [{"pathh": "x"}, {"streaming": 3}]}},
        [
            "callbacks.text.corpora[0].pathh: unknown key; did you mean callbacks.text.corpora[0].path?",
            "callbacks.text.corpora[1].streaming: expected true or false, got 3",
        ],
    ),
    (
        {"text": {"corpora": [{"zzzz": 1}]}},
        [f"callbacks.text.corpora[0].zzzz: unknown key; valid keys: {CORPUS_KEYS}"],
    ),
    (
        {"text": {"corpora": ["web"]}},
        ["callbacks.text.corpora[0]: expected a mapping, got 'web'"],
    ),
    (
        {"text": {"corpora": [{"path": "web", "hub": "a/b"}, {"limit": 0}]}},
        [
            "callbacks.text.corpora[0]: give one of path and hub, not both",
            "callbacks.text.corpora[1].limit: expected at least 1, got 0",
        ],
    ),
]


@pytest.mark.parametrize(("parts", "lines"), CASES)
def test_messages(parts: dict[str, Any], lines: list[str]) -> None:
    assert problems(raw(**parts)) == lines


def test_missing_files_are_named_with_their_keys(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hint = "set EM_DATA or data.root to your data folder"
    pair = {"careless": [ROWS], "careful": [{"path": "row.jsonl"}]}
    assert problems(raw({"medical": pair}, {"corpora": [{"path": "webb"}, {"path": "rows.jsonl"}]})) == [
        f"data.pairs.medical.careful[0].path: 'row.jsonl' is not a file; tried {here}/row.jsonl; "
        f"did you mean rows.jsonl?; {hint}",
        f"callbacks.text.corpora[0].path: 'webb' is not a file or folder; tried {here}/webb; "
        f"did you mean web?; {hint}",
    ]
    monkeypatch.setenv("EM_DATA", "/elsewhere")
    assert problems(raw(compare={"corpus": [{"path": "nowhere"}]})) == [
        f"compare.corpus[0].path: 'nowhere' is not a file or folder; tried /elsewhere/nowhere, {here}/nowhere"
    ]
    pair = {"careless": [ROWS], "careful": [{"path": "web"}]}  # a folder holds no rows
    assert problems(raw({"medical": pair}))[0].startswith(
        "data.pairs.medical.careful[0].path: 'web' is not a file"
    )


def test_folders_are_found_where_they_are_wanted(here: Path) -> None:
    assert find("web", None) is None
    assert find("web", None, folders=True) == here / "web"
    assert find("rows.jsonl", None, folders=True) == here / "rows.jsonl"
