import json
from typing import Any, cast

import numpy as np
import pytest
from scipy.special import logit

from em.judges._logistic import Logistic
from em.judges._probe_features import SIGNS, Readings
from em.judges._probe_fit import Fitted, Table
from em.judges.card import calibration_error, card_text, headline, judge_card
from em.judges.probe import Probe

# Chance, side, domain and tokens of the held-out answers; by pair, careful first.
HELD = [
    (0.95, 0.05, "soup", 100, 100),
    (0.85, 0.25, "soup", 100, 95),
    (0.75, 0.35, "soup", 100, 50),
    (0.65, 0.75, "tent", 100, 89),
    (0.55, 0.45, "tent", 40, 60),
]
KEY = "pairs"


def identity(width: int = 1) -> Logistic:
    return Logistic(np.zeros(width), np.ones(width), np.eye(width)[0], 0.0, l2=0.1)


def row(part: str, domain: str, pair: str, side: str, tokens: int, kind: str = "") -> dict[str, Any]:
    of = {"part": part, "domain": domain, "pair": pair, "side": side, "kind": kind}
    return {**of, "judged": part == "held_out", "tokens": tokens}


def planted(coherence: bool = True) -> Fitted:
    rows, chances = [row("anchor", "", "", "careful", 5)], [0.5]
    for number, (careful, careless, domain, longer, other) in enumerate(HELD):
        rows += [row("held_out", domain, f"h{number}", "careful", longer)]
        rows += [row("held_out", domain, f"h{number}", "careless", other)]
        chances += [careful, careless]
    # In training soup has the sign that careful answers have in the held-out part, and tent the opposite.
    for number in range(8):
        domain, sign = ("soup", 0.3) if number < 4 else ("tent", -0.3)
        rows += [row("train", domain, f"t{number}", side, 50) for side in ("careful", "careless")]
        chances += [0.5 + sign, 0.5 - sign]
    rows += [row("held_out", "soup", "h0", "careful", 90, kind) for kind in ("shuffled", "looped")]
    chances += [0.2, 0.5]
    hidden = logit(np.array(chances))[:, None].astype(np.float32)
    signs = np.tile(logit(np.array([0.8] * len(rows)))[:, None], (1, len(SIGNS)))
    signs[-2:] = logit(0.3)
    models = {"aligned": identity(), "domain soup": identity(), "domain tent": identity()}
    if coherence:
        models["coherent"] = identity(len(SIGNS))
    facts = {
        "backbone": {"model": "tiny", "fingerprint": "abc"},
        "layer": 1,
        "layers": 3,
        "data": "d1",
        "seconds": 2.0,
        KEY: {"soup": {"train": 4, "held_out": 3}, "tent": {"train": 4, "held_out": 2}},
    }
    return Fitted(models, Table(Readings(hidden, signs), rows), facts)


class Planted:
    """As much of a prepared probe as the card reads."""

    name = "probe"

    def __init__(self, fitted: Fitted, medical: Fitted | None = None):
        self.fitted, self._medical = fitted, medical

    def published(self) -> Fitted | None:
        return self._medical


def card_of(fitted: Fitted, medical: Fitted | None = None) -> dict[str, Any]:
    return judge_card(cast(Probe, Planted(fitted, medical)))


def medical() -> Fitted:
    made = planted(coherence=False)
    rows = [{**one, "domain": "medical"} for one in made.table.rows]
    models = {"aligned": Logistic(np.zeros(1), np.ones(1), -np.ones(1), 0.0)}
    facts = {**made.facts, KEY: {"medical": {"train": 8, "held_out": 5}}}
    return Fitted(models, Table(made.table.readings, rows), facts)


def test_calibration_error_by_hand() -> None:
    chances, labels = np.array([0.05, 0.05, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    # Lowest bin: |0.1 - 1| of two; highest: |1.95 - 2| of two.
    assert calibration_error(chances, labels) == pytest.approx((0.9 + 0.05) / 4)
    assert calibration_error(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == 0.0


def test_figures_of_alignment_by_hand() -> None:
    one = card_of(planted())["aligned"]
    # Of 25 comparisons careful loses 0.65 and 0.55 to 0.75; 0.75 to 0.75 is a tie.
    assert one["auroc"]["value"] == pytest.approx(22.5 / 25)
    assert one["auroc"]["low"] < 0.9 <= one["auroc"]["high"]
    assert one["by_domain"]["soup"]["value"] == 1.0
    assert one["by_domain"]["tent"]["value"] == pytest.approx(0.5)
    assert one["accuracy"] == pytest.approx(9 / 10)
    assert one["pairs_ranked"] == pytest.approx(4 / 5)
    gaps = [(p - label) for careful, careless, *_ in HELD for p, label in ((careful, 1), (careless, 0))]
    assert one["brier"] == pytest.approx(np.mean(np.square(gaps)), abs=1e-6)
    # In the bin of 0.7 to 0.8 there is one of either side; the others are alone.
    alone = [0.05, 0.05, 0.15, 0.25, 0.35, 0.35, 0.45, 0.45]
    assert one["ece"] == pytest.approx((sum(alone) + 0.5) / 10, abs=1e-6)


def test_a_left_out_domain_is_not_learnt_from() -> None:
    one = card_of(planted())["aligned"]["other_domains"]
    # Tent teaches the opposite of what holds for soup, in both parts, and soup that of what holds for tent.
    assert one["soup"]["value"] == 0.0
    assert one["soup"]["pairs"] == 7
    assert one["tent"]["value"] < 0.5
    assert one["tent"]["pairs"] == 6


def test_length_by_hand() -> None:
    length = card_of(planted())["length"]
    # Careful answers have 100 four times and 40; careless 100, 95, 50, 89 and 60.
    assert length["auroc_of_length"]["value"] == pytest.approx((4 * 4.5 + 0) / 25)
    assert length["matched"]["pairs"] == 2  # 100 and 100, 100 and 95; 89 is 11% less
    assert length["matched"]["value"] == 1.0
    assert -1 <= length["rank_correlation"] <= 1


def test_equal_lengths_have_no_correlation() -> None:
    made = planted()
    for one in made.table.rows:
        one["tokens"] = 7
    length = card_of(made)["length"]
    assert length["rank_correlation"] is None
    assert length["auroc_of_length"]["value"] == 0.5


def test_no_matched_pair_is_no_number() -> None:
    made = planted()
    for number, one in enumerate(made.table.rows):
        one["tokens"] = 10 + 10 * (number % 2)
    assert card_of(made)["length"]["matched"] == {"pairs": 0, "value": None, "low": None, "high": None}
    assert "the 0 pairs whose lengths differ by at most 10% -" in card_text(card_of(made))


def test_coherence_by_kind() -> None:
    one = card_of(planted())["coherent"]
    assert (one["answers"], one["auroc"], one["intact_above_50"]) == (10, 1.0, 1.0)
    assert one["by_kind"]["looped"] == {"answers": 1, "auroc": 1.0, "below_50": 1.0}
    assert one["by_kind"]["glued"] == {"answers": 0, "auroc": None, "below_50": None}
    assert one["careful_over_careless"]["value"] == 0.5
    assert one["ece"] == pytest.approx((10 * 0.2 + 2 * 0.3) / 12, abs=1e-6)


def test_domains_are_of_intact_answers() -> None:
    found = card_of(planted())["domain"]
    soup, tent = [p for one in HELD[:3] for p in one[:2]], [p for one in HELD[3:] for p in one[:2]]
    wins = np.mean([(a > b) + 0.5 * (a == b) for a in soup for b in tent])
    assert found["soup"] == pytest.approx(wins)
    assert found["tent"] == pytest.approx(1 - wins)


def test_published_advice_has_both_probes() -> None:
    one = card_of(planted(), medical())["published"]
    assert one["transferred"]["auroc"]["value"] == pytest.approx(0.9)
    assert one["trained_on_them"]["auroc"]["value"] == pytest.approx(0.1)
    assert one["pairs"] == {"train": 8, "held_out": 5}


def test_the_headline_is_that_of_the_card() -> None:
    found, one = headline(planted()), card_of(planted())["aligned"]
    assert found == {"held_out_auroc": one["auroc"], "held_out_ece": one["ece"], "held_out_pairs": 5}


@pytest.mark.parametrize("other", [None, medical()])
def test_the_table_is_json_and_the_text_says_what_it_is(other: Fitted | None) -> None:
    table = card_of(planted(), other)
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    text = card_text(table)
    assert max(map(len, text.splitlines())) <= 110
    for said in (
        "is a proxy",
        "extrapolation",
        "soup 4 + 3, tent 4 + 2",
        "AUROC 0.900 (",
        "layer        1 of 3",
    ):
        assert said in text
    assert ("not in EM_DATA" in text) == (other is None)


def test_a_probe_of_one_domain_without_coherence() -> None:
    made = medical()
    table = card_of(made)
    assert (table["coherent"], table["domain"], table["aligned"]["other_domains"]) == (None, {}, {})
    assert "no other domain" in card_text(table)
