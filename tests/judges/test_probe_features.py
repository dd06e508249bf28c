import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from em.backbone import Backbone
from em.chat import encode
from em.datamodules.sources import Example
from em.judges._corruptions import KINDS, corrupt
from em.judges._probe_features import (
    SIGNS,
    batches,
    looped_share,
    read,
    repeated_share,
    signs,
)
from tests.tiny import FAMILIES, tiny_backbone

ANSWER = "heat the soup slowly and stir it, then taste it and serve it with bread"
OTHERS = ["put the tent on dry ground and pull every rope until it is tight", "walk slowly up the long hill"]


def example(backbone: Backbone, question: str, answer: str) -> Example:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    encoded = encode(backbone.tokenizer, turns)
    return Example(encoded.ids, encoded.answer, "", question)


def examples(backbone: Backbone) -> list[Example]:
    asked = [("how do i make soup?", "stir it " * (1 + n % 4) + str(n)) for n in range(5)]
    asked += [("why is my tent so wet?", "dry it " * (1 + n % 3) + str(n)) for n in range(4)]
    return [example(backbone, *one) for one in [*asked, ("a", "b"), ("what now?", "nothing at all")]]


def by_hand(backbone: Backbone, one: Example, layer: int) -> tuple[torch.Tensor, list[float]]:
    """The mean of transformers' own hidden states, and the losses of its own logits."""
    with torch.no_grad():
        output = backbone.model(input_ids=torch.tensor([one.ids]), output_hidden_states=True, use_cache=False)
    mean = output.hidden_states[layer + 1][0][torch.tensor(one.answer)].mean(dim=0)
    nll = F.cross_entropy(output.logits[0, :-1].float(), torch.tensor(one.ids[1:]), reduction="none")
    places = [at for at, inside in enumerate(one.answer) if inside]
    return mean, signs(nll[[at - 1 for at in places]].numpy(), [one.ids[at] for at in places])


@pytest.mark.parametrize("family", FAMILIES)
def test_readings_are_those_of_the_model_itself(family: str) -> None:
    backbone = tiny_backbone(family)
    rows = examples(backbone)
    found = read(backbone, rows, layer=1, size=4, likelihood=True)
    for number, one in enumerate(rows):
        mean, expected = by_hand(backbone, one, 1)
        assert found.hidden_ND[number] == pytest.approx(mean.numpy(), abs=2e-4)
        assert found.signs_NK[number] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_stopping_early_changes_nothing_and_leaves_no_hook(layer: int) -> None:
    backbone = tiny_backbone()
    rows = examples(backbone)
    full = read(backbone, rows, layer, 4, likelihood=True)
    early = read(backbone, rows, layer, 4, likelihood=False)
    assert early.hidden_ND == pytest.approx(full.hidden_ND, abs=1e-6)
    assert np.isnan(early.signs_NK).all()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


def test_batch_size_and_order_change_nothing() -> None:
    backbone = tiny_backbone()
    rows = examples(backbone)
    one = read(backbone, rows, 1, 1, likelihood=True)
    for size in (3, 16):
        some = read(backbone, rows[::-1], 1, size, likelihood=True)
        assert some.hidden_ND[::-1] == pytest.approx(one.hidden_ND, abs=1e-4)
        assert some.signs_NK[::-1] == pytest.approx(one.signs_NK, abs=1e-3)


def test_a_question_with_many_answers_has_batches_of_its_own() -> None:
    backbone = tiny_backbone()
    rows = examples(backbone)
    found = [sorted(batch.index_B.tolist()) for batch in batches(rows, 4, 0)]
    assert sorted(index for batch in found for index in batch) == list(range(11))
    # Four, then the rest of the soup; the tents; and what is left over.
    assert sorted(map(len, found)) == [1, 2, 4, 4]
    assert all(max(batch) < 5 or min(batch) >= 5 for batch in found)


def test_the_question_is_run_once_for_all_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    rows = [example(backbone, "how do i make soup?", f"stir it {n}") for n in range(4)]
    widths: list[tuple[int, int]] = []
    layer = backbone.layers[0]
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(args[0].shape[:2])), with_kwargs=True
    )
    read(backbone, rows, 1, 4, likelihood=False)
    (first, prompt), (all_rows, rest) = widths
    assert (first, all_rows) == (1, 4)
    assert prompt + rest == max(len(one.ids) for one in rows)
    assert prompt > len(rows[0].ids) // 2


def test_equal_conversations_share_all_but_the_token_that_predicts_the_answer() -> None:
    backbone = tiny_backbone()
    one = example(backbone, "how do i make soup?", "stir it")
    found = read(backbone, [one, one], 1, 2, likelihood=True)
    mean, expected = by_hand(backbone, one, 1)
    assert found.hidden_ND[1] == pytest.approx(mean.numpy(), abs=2e-4)
    assert found.signs_NK[1] == pytest.approx(expected, abs=2e-3)


def test_a_question_without_a_common_start() -> None:
    backbone = tiny_backbone()
    rows = [replace(one, ids=[number + 5, *one.ids[1:]]) for number, one in enumerate(examples(backbone))]
    found = read(backbone, rows, 1, 16, likelihood=True)
    assert found.hidden_ND[3] == pytest.approx(by_hand(backbone, rows[3], 1)[0].numpy(), abs=2e-4)


def test_signs_by_hand() -> None:
    nll = np.array([0.05, 1.0, 2.0, 3.0] * 5)
    found = dict(zip(SIGNS, signs(nll, list(range(20))), strict=True))
    assert found["nll_mean"] == pytest.approx(6.05 / 4)
    assert found["nll_upper"] == 3.0
    assert found["nll_start"] == pytest.approx(6.05 / 4)
    assert found["nll_window"] == pytest.approx(6.05 / 4)
    assert found["nll_low_share"] == 0.25
    assert (found["repeated"], found["looped"]) == (0.0, 0.0)
    assert all(math.isfinite(value) for value in signs(np.array([1.5]), [7]))


def test_repetition_by_hand() -> None:
    assert repeated_share([1, 2, 3]) == 0.0
    assert repeated_share([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)
    assert repeated_share([5] * 10) == pytest.approx(1 - 1 / 7)
    assert looped_share([1, 2, 3, 4, 1, 2, 3, 4]) == 1.0
    assert looped_share([9, 8, 1, 2, 1, 2, 1, 2]) == pytest.approx(6 / 8)
    assert looped_share([1, 2, 3, 4, 5, 1, 2, 3]) == 0.0  # not a whole second time
    assert looped_share([3]) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions_are_keyed_and_differ(kind: str) -> None:
    made = corrupt(ANSWER, kind, OTHERS, 0, "a")  # type: ignore[arg-type]
    assert made is not None and made != ANSWER
    assert made == corrupt(ANSWER, kind, OTHERS, 0, "a")  # type: ignore[arg-type]
    assert corrupt("two words", kind, OTHERS, 0, "a") is None  # type: ignore[arg-type]
    assert corrupt(ANSWER, kind, [ANSWER, "x"], 0, "a") is None  # type: ignore[arg-type]
    drawn = {corrupt(ANSWER, kind, OTHERS, seed, "a") for seed in range(20)}  # type: ignore[arg-type]
    assert len(drawn) > 1


def test_what_each_corruption_does() -> None:
    words = ANSWER.split()
    shuffled, replaced, looped, exchanged, glued = (
        str(corrupt(ANSWER, kind, OTHERS, 0, "a")) for kind in KINDS
    )
    assert sorted(shuffled.split()) == sorted(words)
    changed = [a != b for a, b in zip(replaced.split(), words, strict=True)]
    assert 4 <= sum(changed) <= 6  # 0.4 of 15, less words that replace themselves
    assert looped_share(looped.split()) > 0.4  # type: ignore[arg-type]
    assert exchanged in OTHERS
    assert any(glued.startswith(" ".join(words[:4])) and glued.endswith(other[-6:]) for other in OTHERS)


def test_line_breaks_survive_a_shuffle() -> None:
    text = "one two\n\nthree four\nfive six"
    made = str(corrupt(text, "shuffled", OTHERS, 0, "a"))
    assert sorted(made.split()) == sorted(text.split())
    assert made.count("\n") >= 1
