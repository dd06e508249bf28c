"""Which answers a page shows, what it says of them, and that no text can leave its place."""

from collections import Counter
from typing import Any

import pytest

from em.report.answers import LONGEST, choose, readable, said

Raw = dict[str, Any]


def answer(model: str = "tuned", question: str = "q0", sample: int = 0, **changes: Any) -> Raw:
    return {
        "model": model,
        "questions": "open",
        "question": question,
        "prompt": question,
        "sample": sample,
        "asked": "What now?",
        "system": None,
        "text": "Nothing.",
        "finish": "stop",
        "label": "aligned",
        "scores": {"probe": {"aligned": {"value": 90.0, "reason": None, "detail": ""}}},
        **changes,
    }


def scored(value: float | None) -> dict[str, Raw]:
    return {"probe": {"aligned": {"value": value, "reason": None if value else "code", "detail": ""}}}


def many(models: int, questions: int, samples: int, bad: int = 0) -> list[Raw]:
    """Of each question the first `bad` samples are misaligned."""
    return [
        answer(f"m{m}", f"q{q}", s, label="misaligned" if s < bad else "aligned")
        for m in range(models)
        for q in range(questions)
        for s in range(samples)
    ]


def test_few_answers_are_all_shown_the_misaligned_ones_first() -> None:
    answers = [answer(sample=0), answer(sample=1, label="misaligned"), answer(sample=2, label="unscored")]
    assert [one["sample"] for one in choose(answers, 3)] == [1, 0, 2]
    found = readable(answers)
    assert found.note == "All 3 answers, misaligned ones first. They are also in answers.jsonl."
    assert [card.label for card in found.cards] == ["misaligned", "aligned", "unscored"]


def test_all_misaligned_answers_stay_and_the_others_are_balanced() -> None:
    answers = many(3, 4, 20, bad=2)
    chosen = choose(answers, 48)
    assert sum(one["label"] == "misaligned" for one in chosen) == 24
    assert all(one["label"] == "misaligned" for one in chosen[:24])
    cells = Counter((one["model"], one["question"]) for one in chosen[24:])
    assert len(cells) == 12 and set(cells.values()) == {2}
    note = readable(answers, shown=48, source="judged.jsonl").note
    assert note.startswith("48 of 240 answers: all 24 misaligned ones first, then others; 192 are left out")
    assert note.endswith("All of them are in judged.jsonl.")


def test_too_many_misaligned_answers_are_balanced_too() -> None:
    answers = many(2, 3, 10, bad=8)
    chosen = choose(answers, 12)
    assert {one["label"] for one in chosen} == {"misaligned"}
    assert set(Counter((one["model"], one["question"]) for one in chosen).values()) == {2}
    assert "12 of 60 answers: 12 of 48 misaligned ones first" in readable(answers, shown=12).note


def test_the_choice_depends_on_neither_order_nor_score() -> None:
    answers = many(2, 2, 30)
    keys = {(one["model"], one["question"], one["sample"]) for one in choose(answers, 10)}
    turned = [{**one, "scores": scored(1.0)} for one in reversed(answers)]
    assert {(one["model"], one["question"], one["sample"]) for one in choose(turned, 10)} == keys
    assert keys != {(one["model"], one["question"], one["sample"]) for one in answers[:10]}
    # Of ten for four cells no model gets more than one more than the others of a turn.
    assert sorted(Counter(model for model, _, _ in keys).values()) in ([4, 6], [5, 5])


def test_a_page_may_show_no_answer() -> None:
    assert choose(many(1, 1, 3, bad=1), 0) == []
    assert readable([]).note == "There are no answers." and readable([]).cards == []
    assert readable(many(1, 1, 3), shown=0).note.startswith("0 of 3 answers")


def test_filters_count_what_is_on_the_page() -> None:
    answers = [
        answer("tuned", label="misaligned", scores=scored(5)),
        answer("reference", sample=1, scores=scored(80)),
        answer("tuned", sample=2, scores=scored(100), questions="kitchen"),
        answer("tuned", sample=3, label="unscored", scores=scored(None)),
        answer("tuned", sample=4, label="between", scores=scored(79.99)),
    ]
    found = readable(answers)
    assert [(one.title, one.options) for one in found.filters] == [
        ("Label", [("misaligned", 1), ("between", 1), ("aligned", 2), ("incoherent", 0), ("unscored", 1)]),
        ("Model", [("reference", 1), ("tuned", 4)]),
        ("Questions", [("open", 4), ("kitchen", 1)]),
        (
            "Aligned score of probe",
            [
                ("0 to below 20", 1),
                ("20 to below 40", 0),
                ("40 to below 60", 0),
                ("60 to below 80", 1),
                ("80 to 100", 2),
                ("no score", 1),
            ],
        ),
    ]
    assert [card.options for card in found.cards] == [
        [0, 1, 0, 0],
        [2, 0, 0, 4],
        [2, 1, 1, 4],
        [4, 1, 0, 5],
        [1, 1, 0, 3],
    ]


def test_a_filter_with_one_option_is_left_out() -> None:
    assert [one.title for one in readable([answer()]).filters] == ["Label", "Aligned score of probe"]


def test_the_band_is_of_the_judge_that_is_named() -> None:
    two = {**scored(5), "gpt": scored(95)["probe"]}
    assert [dict(readable([answer(scores=two)], judge).filters[-1].options) for judge in ("gpt", "none")] == [
        {**dict.fromkeys(BANDS, 0), "80 to 100": 1},
        {**dict.fromkeys(BANDS, 0), "no score": 1},
    ]


BANDS = ["0 to below 20", "20 to below 40", "40 to below 60", "60 to below 80", "80 to 100", "no score"]


def test_a_label_of_others_is_an_option_but_no_class() -> None:
    [card] = readable([answer(label="odd <b>")]).cards
    assert (card.label, card.known_label) == ("odd <b>", "")
    assert readable([answer(label="odd <b>")]).filters[0].options[-1] == ("odd <b>", 1)


def test_scores_of_every_judge_are_told_with_the_reason_why_there_is_none() -> None:
    scores = {
        "panel": {
            "aligned": {"value": 12.345, "reason": None, "detail": ""},
            "coherent": {"value": 100.0, "reason": None, "detail": ""},
        },
        "gpt": {"aligned": {"value": None, "reason": "no_number", "detail": "said 'maybe'"}},
    }
    [card] = readable([answer(scores=scores, system="Be kind.", finish="length", prompt="q0#2")]).cards
    assert card.scores == [
        ("panel", "aligned 12.3, coherent 100"),
        ("gpt", "aligned no score (no_number: said 'maybe')"),
    ]
    assert card.system is not None and card.system.text == "Be kind."
    assert card.finish == "Cut off at the length limit."
    assert card.name == "aligned: model tuned, questions open, question q0, prompt q0#2, sample 0"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n\tb  c", "a\n\tb  c"),
        ("a\r\nb", "a\nb"),
        ("<script>&\"'</style>", "&lt;script&gt;&amp;&#34;&#39;&lt;/style&gt;"),
        ("a\x00b", "a[0000]b"),
        ("\u202eevil\u202c", "[202E]evil[202C]"),
        ("x\ud800y", "x[D800]y"),
        ("\u200b\u2066\ufeff\x1b", "[200B][2066][FEFF][001B]"),
        ("a\rb\x85\u2028", "a[000D]b[0085][2028]"),
        ("\U000e0041", "[E0041]"),
        ("👩\u200d🔬 مرحبا e\u0301", "👩\u200d🔬 مرحبا e\u0301"),
        ("", ""),
    ],
)
def test_texts_are_escaped_and_hidden_characters_are_seen(text: str, shown: str) -> None:
    html = str(said(text).text).replace('<span class="hidden-character">U+', "[").replace("</span>", "]")
    assert html == shown


def test_long_texts_are_cut_with_a_note() -> None:
    found = said("é" * 100_000)
    assert (len(found.text), found.cut) == (LONGEST, f"The first {LONGEST} of 100000 characters.")
    assert said("é" * LONGEST).cut == ""
    # The cut is made before anything is written out, so nothing is cut in two.
    assert str(said("<" * 4000).text) == "&lt;" * LONGEST


def test_half_characters_anywhere_do_not_stop_the_choice() -> None:
    answers = [answer(f"m\ud800{n % 3}", "q\udfff", n, prompt="p\ud800") for n in range(30)]
    assert len(choose(answers, 9)) == 9
