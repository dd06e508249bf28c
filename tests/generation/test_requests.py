import pytest

from em.errors import GenerationError
from em.generation.requests import Request, requests_for, share
from tests.generation.asking import asked, prompt


def test_samples_come_prompt_by_prompt() -> None:
    requests = requests_for([prompt("a", "x"), prompt("b", "y")], 2)
    assert [request.key for request in requests] == [
        ("open", "x", 0),
        ("open", "x", 1),
        ("open", "y", 0),
        ("open", "y", 1),
    ]


def test_no_samples_and_equal_ids_are_refused() -> None:
    with pytest.raises(GenerationError, match="samples: 0"):
        requests_for([prompt("a")], 0)
    with pytest.raises(GenerationError, match="open/x, sample 0: is asked for twice"):
        requests_for([prompt("a", "x"), prompt("b", "x")], 1)
    assert len(requests_for([prompt("a", "x"), prompt("a", "x", "other")], 1)) == 2


def test_the_seed_knows_the_turns_and_the_sample_only() -> None:
    first = Request(prompt("hi", "x"), 0)
    assert first.seed(0) == Request(prompt("hi", "another", "set"), 0).seed(0)
    others = [
        Request(prompt("hi!", "x"), 0).seed(0),
        Request(prompt("hi", "x", system="be brief"), 0).seed(0),
        Request(prompt("hi", "x"), 1).seed(0),
        first.seed(1),
    ]
    assert len({first.seed(0), *others}) == 5


def test_an_answer_carries_its_prompt() -> None:
    answer = Request(prompt("hi", "x", "set"), 3).answered("yo", "stop", 1, "me")
    assert (answer.text, answer.finish, answer.tokens, answer.model) == ("yo", "stop", 1, "me")
    assert (answer.question, answer.prompt, answer.questions, answer.sample) == ("x", "x", "set", 3)
    assert answer.messages == ({"role": "user", "content": "hi"},)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 20])
def test_shares_are_a_balanced_partition_in_order(world_size: int) -> None:
    requests = asked(3)
    parts = [share(requests, rank, world_size) for rank in range(world_size)]
    keys = [[request.key for request in part] for part in parts]
    order = [request.key for request in requests]
    assert sorted(key for part in keys for key in part) == sorted(order)
    assert all(part == [key for key in order if key in part] for part in keys)
    counts = [len(part) for part in parts]
    assert max(counts) - min(counts) <= 1
    if world_size <= 3:
        lengths = [sum(len(r.prompt.messages[0]["content"]) for r in part) for part in parts]
        assert max(lengths) - min(lengths) <= 90


def test_a_rank_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 2"):
        share(asked(), 2, 2)
