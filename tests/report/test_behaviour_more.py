from em.figures.model import Table
from em.report.behaviour_more import projection, seeds, sentinels, warnings

NONE: dict[str, object] = {}


def only(tables: list[Table]) -> Table:
    (table,) = tables
    return table


def test_there_are_no_tables_of_what_was_not_measured() -> None:
    assert seeds(NONE) == projection(NONE) == sentinels(NONE) == sentinels({"sentinels": []}) == []


def test_the_projection_says_where_there_is_no_number() -> None:
    row = {"judge": "j", "model": "m", "set": "open", "misaligned": 0, "aligned": 3}
    none = {
        **row,
        "site": "3.block",
        "value": None,
        "low": None,
        "high": None,
        "reason": "no misaligned answer",
    }
    table = only(projection({"projection": {"direction": "d", "left_out": 2, "sites": [none]}}))
    assert table.rows == [["3.block", "j", "m", "open", None, None, None, 0, 3, "no misaligned answer"]]
    assert "2 answers have no token" in table.definition


def test_drift_names_sentinels() -> None:
    row = {
        "judge": "j", "metric": "aligned", "runs": 2, "sentinels": 16, "mean_change": 1.5, "max_change": 9.0,
        "sentinel": "wish", "usual": 1.0, "flipped": ["a", "b"], "failed": [], "passes": True,
    }  # fmt: skip
    table = only(sentinels({"sentinels": [row]}))
    assert table.rows == [["j", "aligned", 2, 16, 1.5, 9.0, "wish", 1.0, "a, b", ""]]


def test_a_probe_is_said_to_be_a_proxy_in_a_panel_too() -> None:
    probe = {"kind": "probe", "held_out_auroc": {"value": 0.977}, "held_out_pairs": 98}
    (line,) = warnings(probe)
    assert "a proxy" in line and "AUROC 0.977 on 98 held-out pairs" in line
    assert warnings({"kind": "panel", "members": {"a": probe, "b": {"kind": "openai"}}}) == [line]
    assert warnings({"kind": "openai"}) == []
