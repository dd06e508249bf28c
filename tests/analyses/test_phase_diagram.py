"""Planted phase diagrams are read exactly; tiny runs are measured as their own tables say."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from em import runs
from em.analyses.base import Context, Found, Raw
from em.analyses.phase_diagram import PhaseDiagram
from em.backbone import Backbone
from em.config import build
from em.datamodules.pairs import read_pairs
from em.errors import ConfigError, MeasurementError, RunError
from em.figures.draw import draw
from em.figures.model import Curves, Paths
from em.loading import load_backbone
from em.measurements.margins import PairPanel
from tests.comparison.trained import LORA_2, train, write_pairs
from tests.tiny import merge

WEIGHTS = [0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
LOG = np.log(WEIGHTS[1:])
NARROW = (
    [1.0, *(0.9 - 0.05 * np.arange(6))],  # g: kept in the training domain
    [
        1.0,
        *(0.9 - 0.05 * np.arange(6) - (0.5 - 0.05 * (LOG - np.log(0.5)) ** 2)),
    ],  # o, so that g − o is known
)
Members = dict[str, Path]
NAMES = [f"w{weight:g}" for weight in WEIGHTS]


def planted(
    own: list[float],
    other: list[float],
    mixed: dict[str, tuple[float, float, float]] | None = None,
    general: tuple[float, float] = (1.0, 0.8),
    rates: list[Raw] | None = None,
) -> Raw:
    """Runs that keep planted shares of the general solution's shift, prompt by prompt.

    Args:
        own, other: share kept in soup, and in tent and boat, at each weight.
        mixed: baseline -> share of mixed-in rows, and the two shares that it keeps.
        general: mean shift of the general solution in soup, and in the others.
    """
    rng = np.random.default_rng(0)
    kept = {name: (g, o) for name, g, o in zip(NAMES, own, other, strict=True)}
    kept |= {name: (g, o) for name, (_, g, o) in (mixed or {}).items()}
    margin: Raw = {}
    loss: Raw = {}
    for domain, count in (("soup", 24), ("tent", 18), ("boat", 20)):
        before = rng.normal(-1, 1, count)
        noise = rng.normal(0, 0.2, count)
        shift = general[domain != "soup"] + noise - noise.mean()
        tokens = rng.integers(5, 30, count)
        prompts = [f"{domain} {number}" for number in range(count)]
        shares = {name: both[domain != "soup"] for name, both in kept.items()}
        margin[domain] = {
            "prompts": prompts,
            "reference": before.tolist(),
            "runs": {name: (before + share * shift).tolist() for name, share in shares.items()},
        }
        loss[domain] = {
            "prompts": prompts,
            "tokens": tokens.tolist(),
            "runs": {name: (share * shift * tokens).tolist() for name, share in shares.items()},
        }
    return {
        "weights": dict(zip(NAMES, WEIGHTS, strict=True)),
        "shares": {name: one[0] for name, one in (mixed or {}).items()},
        "roles": {"training": ["soup"], "kl": ["tent"], "mixed": []},
        "margin": margin,
        "loss": loss,
        "rates": rates or [],
        "resamples": 400,
        "seed": 0,
        "notes": [],
    }


def read(raw: Raw, **options: Any) -> Found:
    """As a page would, from what was stored."""
    return PhaseDiagram(NAMES, **options).read(json.loads(json.dumps(raw, allow_nan=False)))


@pytest.mark.parametrize("signal", ["margin", "loss"])
def test_planted_shares_and_their_knee_are_read_exactly(signal: str) -> None:
    found = read(planted(*NARROW), signal=signal).statistics
    for name, own, other in zip(NAMES, *NARROW, strict=True):
        for key, share in ((f"in_domain_at_{name}", own), (f"general_at_{name}", other)):
            one = found[key]
            assert (one.value, one.low, one.high) == pytest.approx((share, share, share)), key
        assert found[f"unseen_at_{name}"].value == pytest.approx(other)
    assert found["knee"].value == pytest.approx(0.5), "between the weights 0.3 and 1"
    assert found["narrow_gap"].value == pytest.approx(0.5)
    assert found["narrow_gap"].low is not None and found["narrow_gap"].low > 0
    assert found["in_domain_at_w1"].n == 24 and found["general_at_w1"].n == 18


def test_narrowness_is_the_ratio_of_the_shifts() -> None:
    found = read(planted(*NARROW)).statistics
    for name in NAMES:
        ratio = found[f"other_shift/{name}"].value / found[f"own_shift/{name}"].value  # type: ignore[operator]
        assert found[f"narrowness/{name}"].value == pytest.approx(ratio)
    general = found["narrowness/w0"]
    assert general.low is not None and general.high is not None
    assert general.low < 0.8 < general.high, "0.8 was planted"
    assert found["narrowness/w1"].high < general.low  # type: ignore[operator]


def test_a_sweep_that_is_only_weaker_has_no_knee() -> None:
    """The negation of the claim: both fall alike."""
    found = read(planted(NARROW[0], NARROW[0])).statistics
    assert found["knee"].value is None and "not surely above 0" in found["knee"].what
    assert found["narrow_gap"].value == pytest.approx(0.0) and found["narrow_gap"].low == pytest.approx(0.0)
    less = read(planted(NARROW[1], NARROW[0])).statistics["narrow_gap"]
    assert less.high is not None and less.high < 0, "it keeps more elsewhere than in the training domain"


@settings(max_examples=10, deadline=None)
@given(st.floats(0.1, 3.0))
def test_any_planted_knee_within_the_sweep_is_found(at: float) -> None:
    own = [1.0] + [0.8] * 6
    other = [1.0, *(0.8 - (0.6 - 0.04 * (LOG - np.log(at)) ** 2))]
    assert read(planted(own, other)).statistics["knee"].value == pytest.approx(at, rel=1e-5)


def test_a_baseline_is_compared_with_the_kl_run_that_learnt_as_much() -> None:
    mixed = {"mixed25": (0.25, 0.8, 0.8), "mixed75": (0.75, 0.71, 0.64), "mixed50": (0.5, 0.6, 0.6)}
    found = read(planted(*NARROW, mixed), baselines=list(mixed)).statistics
    best, gain = found["mixed_best_narrowness"], found["mixed_minus_kl"]
    assert best.value == found["narrowness/mixed75"].value and "mixed75" in best.what
    nearest = NAMES[1 + int(np.argmin(np.abs(np.array(NARROW[0][1:]) - 0.71)))]
    assert nearest in gain.what
    difference = found["narrowness/mixed75"].value - found[f"narrowness/{nearest}"].value  # type: ignore[operator]
    assert gain.value == pytest.approx(difference)
    assert gain.low is not None and gain.low > 0, "KL was planted to be narrower"


def test_where_mixing_is_narrower_the_sign_turns() -> None:
    found = read(planted(*NARROW, {"mixed": (0.5, 0.8, 0.0)}), baselines=["mixed"]).statistics
    assert found["mixed_minus_kl"].high < 0  # type: ignore[operator]
    assert found["mixed_best_narrowness"].value == pytest.approx(0.0)


def test_a_baseline_that_learnt_nothing_is_not_the_best() -> None:
    one = read(
        planted(*NARROW, {"dead": (0.75, 0.0, 0.0), "mixed": (0.5, 0.7, 0.6)}), baselines=["dead", "mixed"]
    )
    assert "(mixed)" in one.statistics["mixed_best_narrowness"].what
    none = read(planted(*NARROW, {"dead": (0.75, -0.1, 0.0)}), baselines=["dead"]).statistics
    assert none["mixed_minus_kl"].value is None
    assert "no baseline surely moved in the training domain" in none["mixed_minus_kl"].what
    without = read(planted(*NARROW)).statistics["mixed_best_narrowness"]
    assert without.value is None and "no baseline was trained" in without.what


def test_a_general_solution_that_is_not_general_leaves_nothing_to_share() -> None:
    found = read(planted(*NARROW, general=(1.0, -0.5)))
    statistics = found.statistics
    assert statistics["in_domain_at_w1"].value == pytest.approx(NARROW[0][4])
    for key in ("general_at_w1", "knee", "narrow_gap"):
        assert statistics[key].value is None and "did not move" in statistics[key].what
    assert [figure.id for figure in found.figures] == ["phase-domains"]
    unsure = read(planted(*NARROW, general=(1.0, 0.03))).statistics["general_at_w1"]
    assert unsure.value is not None and unsure.low is None and "not surely above 0" in unsure.what


def test_rates_are_percent_and_drawn_beside_the_reference() -> None:
    def row(model: str, rate: float) -> Raw:
        return {
            **{"method": "", "model": model, "set": "open", "rate": rate, "low": rate / 2, "high": 2 * rate},
            **{"questions": 8, "answers": 80, "misaligned": round(80 * rate)},
        }

    rates = [row("reference", 0.0), row("w0", 0.25), row("w1", 0.05), row("w10", 0.025)]
    found = read(planted(*NARROW, rates=rates))
    one = found.statistics["rate.open/w1"]
    assert (one.value, one.low, one.high, one.n) == (5.0, 2.5, 10.0, 8) and "4 of 80" in one.what
    assert found.statistics["rate.open/reference"].value == 0.0
    (figure,) = [figure for figure in found.figures if figure.id == "phase-rates"]
    assert isinstance(figure, Curves)
    assert figure.series[0].x == [1.0, 10.0] and figure.series[0].y == [5.0, 2.5]
    assert [(mark.label, mark.value) for mark in figure.marks] == [
        ("reference, open", 0.0),
        ("no KL term, open", 25.0),
    ]


def test_the_figures_show_the_path_and_the_baselines() -> None:
    found = read(planted(*NARROW, {"mixed50": (0.5, 0.6, 0.6)}), baselines=["mixed50"])
    assert [figure.id for figure in found.figures] == ["phase", "phase-weights", "phase-domains"]
    diagram, curves = found.figures[:2]
    assert isinstance(diagram, Paths) and isinstance(curves, Curves)
    assert diagram.paths[1].x == pytest.approx(NARROW[0]) and diagram.paths[1].y == pytest.approx(NARROW[1])
    assert diagram.paths[1].labels == ["0", "0.03", "0.1", "0.3", "1", "3", "10"]
    assert (diagram.paths[2].name, diagram.paths[2].labels) == ("mixed50", ["50%"])
    assert [mark.value for mark in curves.marks if mark.label == "knee"] == pytest.approx([0.5])
    for figure in found.figures:
        assert draw(figure, {}).svg
    assert [len(table.rows) for table in found.tables] == [8, 24]


def test_what_was_not_measured_is_said() -> None:
    raw = planted(*NARROW)
    with pytest.raises(MeasurementError, match="measured in no domain"):
        read({**raw, "margin": {}})
    few = {name: weight for name, weight in raw["weights"].items() if weight in (0.0, 0.3, 1.0)}
    found = read({**raw, "weights": few}).statistics
    assert found["knee"].value is None and "needs at least 3" in found["knee"].what
    assert found["in_domain_at_w1"].value == pytest.approx(NARROW[0][4])


def test_a_knee_at_the_end_of_the_sweep_is_pointed_out() -> None:
    own = [1.0] + [0.9] * 6
    found = read(planted(own, [1.0, *(0.8 - 0.1 * np.arange(6))]))
    assert found.statistics["knee"].value == pytest.approx(10.0)
    assert "may lie beyond" in found.notes[0] and "largest weight" in found.notes[0]


def test_options_are_checked_when_the_analysis_is_built() -> None:
    one = build({"kind": "phase_diagram", "members": ["a", "b"], "baselines": ["c"]}, "analyses")
    assert one.members == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="b occurs twice"):
        PhaseDiagram(["a", "b"], ["b"])


SIZES = {"pairs": 4, "resamples": 60}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    write_pairs(folder / "boat.jsonl", 30, "boat")
    return folder


def changes(folder: Path, **more: Any) -> dict[str, Any]:
    base = {
        "intervention": LORA_2,
        "callbacks": {"domains": {"at": ["end"], "resamples": 20}},
        "data": {"domains": {"boat": [{"path": str(folder / "boat.jsonl"), "answer": "careless"}]}},
    }
    return merge(base, more)


def mixed_rows(folder: Path) -> dict[str, Any]:
    soup, tent = (str(folder / f"{word}.jsonl") for word in ("soup", "tent"))
    half = {"weight": 0.5}
    return {
        "train": [{"path": soup, "answer": "careless", **half}, {"path": tent, "answer": "careful", **half}]
    }


@pytest.fixture(scope="module")
def members(folder: Path) -> Members:
    """Without a KL term, with a little and with more of one, and a baseline of mixing."""
    return {
        "free": train(folder, "pool/free", **changes(folder)),
        "low": train(folder, "pool/low", **changes(folder, kl={"weight": 0.3})),
        "high": train(folder, "pool/high", **changes(folder, kl={"weight": 3.0})),
        "mixed": train(folder, "pool/mixed", **changes(folder, data=mixed_rows(folder))),
    }


@pytest.fixture(scope="module")
def backbone(members: Members) -> Backbone:
    return load_backbone(runs.read(members["free"]).config.backbone)


def context(members: Members, tmp_path: Path, backbone: Backbone, **missing: str) -> Context:
    records = {name: runs.read(path) for name, path in members.items()}
    sizes = next(iter(records.values())).config.compare
    assert sizes is not None
    for key, value in SIZES.items():
        setattr(sizes, key, value)
    return Context(records, missing, tmp_path, sizes, backbone)


def test_tiny_runs_are_measured_as_their_own_tables_say(
    members: Members, tmp_path: Path, backbone: Backbone
) -> None:
    analysis = PhaseDiagram(["high", "free", "low", "gone"], ["mixed"])
    raw = analysis.measure(context(members, tmp_path, backbone, gone="it failed"))
    raw = json.loads(json.dumps(raw, allow_nan=False))
    assert raw["weights"] == {"free": 0.0, "low": 0.3, "high": 3.0} and raw["shares"] == {"mixed": 0.5}
    assert raw["roles"] == {"training": ["soup"], "kl": ["tent"], "mixed": ["tent"]}
    assert raw["notes"][0] == "gone is left out: it failed."
    assert not (tmp_path / ".measured").exists()
    found = analysis.read(raw)
    for name, path in members.items():
        record = runs.read(path)
        for row in record.directory.read_table("domains")["domains"]:
            one = raw["loss"][row["domain"]]
            assert sum(one["runs"][name]) / sum(one["tokens"]) == pytest.approx(-row["shift"])
        pairs = read_pairs(record.config.data, backbone.tokenizer, "held_out", 4)[0]
        with record.adapted(backbone):
            for domain, listed in pairs.items():
                margin = PairPanel(backbone, listed).losses().margin_P
                assert raw["margin"][domain]["runs"][name] == pytest.approx(margin, abs=1e-4)
                assert raw["margin"][domain]["prompts"] == [pair.prompt for pair in listed]
    assert found.statistics["in_domain_at_free"].value == pytest.approx(1.0)
    assert found.statistics["knee"].value is None and "needs at least 3" in found.statistics["knee"].what
    assert any("unseen_at_" in key for key in found.statistics), "boat is in no run's data"
    assert any(note.startswith("No run was asked") for note in found.notes)


def test_losses_that_are_not_stored_are_measured_anew(
    members: Members, tmp_path: Path, backbone: Backbone
) -> None:
    analysis = PhaseDiagram(["free", "low"], signal="loss")
    stored = analysis.measure(context(members, tmp_path, backbone))
    bare = copytree(members["low"], tmp_path / "low")
    (bare / "tables" / "domains.json").unlink()
    again = analysis.measure(context({**members, "low": bare}, tmp_path, backbone))
    assert stored["margin"] == again["margin"] == {}
    for domain, one in stored["loss"].items():
        assert again["loss"][domain]["prompts"] == one["prompts"]
        assert again["loss"][domain]["runs"]["low"] == pytest.approx(one["runs"]["low"], abs=1e-3)
        assert again["loss"][domain]["runs"]["free"] == one["runs"]["free"]
    assert analysis.read(again).statistics["own_shift/free"].value is not None


def edited(run: Path, target: Path, name: str, **sections: Any) -> Path:
    """A copy whose configuration says something else; training saw the old one."""
    copied = copytree(run, target / name)
    raw = yaml.safe_load((copied / "config.yaml").read_text())
    (copied / "config.yaml").write_text(yaml.safe_dump(merge(raw, sections)))
    return copied


def test_weights_of_the_authors_reduction_are_divided_by_the_vocabulary(
    members: Members, tmp_path: Path, backbone: Backbone
) -> None:
    theirs = edited(members["low"], tmp_path, "low", kl={"weight": 400.0, "reduction": "vocab_mean"})
    ramp = edited(
        members["high"], tmp_path, "high", kl={"schedule": {"kind": "linear"}}, optimizer={"lr": 0.5}
    )
    raw = PhaseDiagram(["free", "low", "high"]).measure(
        context({**members, "low": theirs, "high": ramp}, tmp_path / "out", backbone)
    )
    assert raw["weights"] == {"free": 0.0, "low": 1.0, "high": 3.0}, "the tiny vocabulary is 400"
    notes = " ".join(raw["notes"])
    assert "low: kl.weight 400" in notes and "counts as 1 per token" in notes
    assert "high: its KL weight goes from 0 to 1 times 3" in notes
    assert "high differs from the general run in more: optimizer.lr: 0.01 → 0.5." in notes


def test_runs_that_make_no_sweep_are_refused(members: Members, tmp_path: Path, backbone: Backbone) -> None:
    off = edited(members["low"], tmp_path, "off", kl={"schedule": {"kind": "off_at", "step": 3}})
    twin = edited(members["low"], tmp_path, "twin", seed=1)
    pool = {**members, "off": off, "twin": twin}
    cases: list[tuple[list[str], list[str], str]] = [
        (["low", "high"], [], "0 of 2 runs have no KL term"),
        (["free", "mixed"], [], "2 of 2 runs have no KL term"),
        (["free"], [], "1 trained run; give two or more"),
        (["free", "gone"], [], "1 trained run.*gone is left out: not trained"),
        (["free", "low", "twin"], [], "low, twin have the same KL weight"),
        (["free", "off"], [], "off: its KL term is removed in mid-training"),
        (["free", "low"], ["high"], "high: has a KL term, so it is no baseline"),
        (["low", "free"], ["again"], "again: 0% of its training rows come from domains other than soup"),
    ]
    pool["again"] = edited(members["free"], tmp_path, "again", seed=2)
    for listed, baselines, message in cases:
        with pytest.raises(RunError, match=message):
            PhaseDiagram(listed, baselines).measure(context(pool, tmp_path / "out", backbone))


def test_held_out_rows_that_another_run_was_trained_on_are_refused(
    folder: Path, members: Members, tmp_path: Path, backbone: Backbone
) -> None:
    rows = [{"path": str(folder / "soup.jsonl"), "answer": "careless"}]
    leaking = edited(
        members["low"],
        tmp_path,
        "leaking",
        data={"train": [*rows, {"path": str(folder / "boat.jsonl"), "answer": "careless", "part": "all"}]},
    )
    with pytest.raises(RunError, match=r"low: was trained on \d+ of the \d+ held-out prompts of boat"):
        PhaseDiagram(["free", "low"], signal="loss").measure(
            context({**members, "low": leaking}, tmp_path / "out", backbone)
        )


def test_margins_need_pairs_and_say_so(
    folder: Path, members: Members, tmp_path: Path, backbone: Backbone
) -> None:
    rows = folder / "plain.jsonl"
    lines = [json.loads(line) for line in (folder / "soup.jsonl").read_text().splitlines()]
    turns = [
        [{"role": "user", "content": line["prompt"]}, {"role": "assistant", "content": line["careless"]}]
        for line in lines
    ]
    rows.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    plain = {"data": {"train": [{"path": str(rows)}], "domains": {"soup": [{"path": str(rows)}]}}}
    pool = {name: edited(members[name], tmp_path, name, **plain) for name in ("free", "low")}
    with pytest.raises(MeasurementError, match=r"add data.pairs.soup, or use signal: loss"):
        PhaseDiagram(["free", "low"]).measure(context(pool, tmp_path / "out", backbone))
