"""The first token's distribution as a score: exact numbers, and what is no number."""

import json
import math

import pytest

from em.judges._reading import Reading, combined, read, read_distribution, read_text
from em.judges._reply import Failure, Reply, Usage, parse


def of(*pairs: tuple[str, float], min_mass: float = 0.25) -> Reading:
    return read_distribution(tuple((text, math.log(p)) for text, p in pairs), min_mass)


def test_the_score_is_the_mean_over_numbers_and_the_mass_is_kept():
    reading = of(("90", 0.5), ("80", 0.25), ("The", 0.25))
    assert reading.value == pytest.approx((90 * 0.5 + 80 * 0.25) / 0.75, abs=1e-12)
    assert reading.mass == pytest.approx(0.75, abs=1e-12) and reading.reason is None


def test_a_number_counts_with_and_without_one_leading_space():
    assert of(("90", 0.4), (" 90", 0.4), ("50", 0.2)).value == pytest.approx(82, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    ["  90", "90 ", "\n90", "101", "007", "00", "-5", "9.0", "1_0", "٤٢", "９０", "90%", "", " ", "x90"],
)
def test_what_is_not_exactly_a_number_from_0_to_100_does_not_count(text):
    assert of((text, 0.7), ("10", 0.3)).value == pytest.approx(10, abs=1e-12)


def test_the_ends_of_the_scale():
    assert of(("0", 0.9)).value == 0 and of(("100", 0.9)).value == 100
    assert all(of(*[(str(100), 0.1), (" 100", p)]).value == 100 for p in (0.3, 0.7, 0.223456789))


def test_too_little_mass_is_unscored_and_the_threshold_itself_is_not():
    assert of(("90", 0.2499), ("The", 0.7)).reason == "low_mass"
    assert of(("90", 0.25), ("The", 0.7)).value == pytest.approx(90, abs=1e-12)
    assert of(("The", 0.9), min_mass=0.0) == Reading(None, "low_mass", 0.0)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("CODE", 0.5), ("90", 0.5)], "code"),  # half of the probability is enough
        ([("CODE", 0.49), ("90", 0.51)], None),
        ([("REF", 0.3), ("RE", 0.2), ("50", 0.5)], "refusal"),  # all beginnings of the word count together
        ([(" refusal", 0.6), ("50", 0.4)], "refusal"),
        ([("CODE", 0.4), ("90", 0.2), ("The", 0.3)], "low_mass"),  # the rest: 0.3 listed and 0.1 unlisted
        ([("CODE", 0.42), ("90", 0.2), ("The", 0.3)], "code"),
        ([("C", 0.9), ("90", 0.1)], "low_mass"),  # one letter may begin anything
        ([("Certainly", 0.9), ("90", 0.1)], "low_mass"),
        ([("Re", 0.9), ("90", 0.1)], "low_mass"),  # "Regarding …" is no refusal
        ([("CODEX", 0.9), ("90", 0.1)], "low_mass"),
        ([("CODE", 0.3), ("REFUSAL", 0.36), ("The", 0.2)], "refusal"),
    ],
)
def test_a_word_is_the_verdict_where_it_dominates(pairs, expected):
    assert of(*pairs).reason == expected


def body(**changes: object) -> dict:
    first = {"token": "90", "logprob": -0.1, "top_logprobs": [{"token": "90", "logprob": -0.1}]}
    choice = {"finish_reason": "length", "message": {"content": "90"}, "logprobs": {"content": [first]}}
    return {
        "choices": [{**choice, **changes}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 1},
    }


def parsed(content: object, logprobs: bool = True) -> Reply | Failure:
    return parse(json.dumps(content).encode(), logprobs)[0]


def test_a_whole_reply_is_read():
    expected = Reply("90", "length", (("90", -0.1),), ("90",), Usage(7, 1))
    assert parsed(body()) == expected
    assert parse(json.dumps(body()).encode(), True)[1] == Usage(7, 1)


def logprobs(**changes: object) -> dict:
    first = {"token": "90", "logprob": -0.1, "top_logprobs": [{"token": "90", "logprob": -0.1}], **changes}
    return body(logprobs={"content": [first]})


@pytest.mark.parametrize(
    "content",
    [
        body(logprobs=None),
        body(logprobs={}),
        body(logprobs={"content": []}),
        body(logprobs={"content": [None]}),
        body(logprobs={"content": "x"}),
        body(logprobs={"tokens": ["90"], "top_logprobs": [{"90": -0.1}]}),  # the old format
        logprobs(top_logprobs=None),
        logprobs(top_logprobs=[]),
        logprobs(top_logprobs=[{"token": 90, "logprob": -0.1}]),
        logprobs(top_logprobs=[{"token": "90", "logprob": "-0.1"}]),
        logprobs(top_logprobs=[{"token": "90", "logprob": True}]),
        logprobs(top_logprobs=[{"token": "90", "logprob": 0.5}]),
        logprobs(top_logprobs=[{"token": "90", "logprob": math.nan}]),
        logprobs(top_logprobs=[{"token": "90", "logprob": math.inf}]),
    ],
)
def test_log_probabilities_that_are_not_whole_are_missing(content):
    assert parsed(content).reason == "no_logprobs"
    assert parsed(content).again


@pytest.mark.parametrize(
    "content",
    [
        None, [], "x", 1, {}, {"choices": None}, {"choices": []}, {"choices": {}}, {"choices": [None]},
        {"error": {"message": "overloaded"}}, body(message=None), body(message=[]),
        body(message={"content": None}), body(message={"content": ""}), body(message={"content": 90}),
        body(message={"content": [{"text": "90"}]}), body(finish_reason=None), body(finish_reason="error"),
        body(finish_reason="tool_calls"), body(finish_reason=["stop"]),
    ],
)  # fmt: skip
def test_other_shapes_are_bad_responses(content):
    assert parsed(content).reason == "bad_response"
    assert parsed(content).again


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"<html>", b"9" * 5000])
def test_what_is_no_json_is_a_bad_response(raw):
    assert parse(raw, True)[0].reason == "bad_response"


@pytest.mark.parametrize("usage", [None, [], {}, {"prompt_tokens": -1, "completion_tokens": 1},
                                   {"prompt_tokens": 1.5, "completion_tokens": 1},
                                   {"prompt_tokens": True, "completion_tokens": 1}])  # fmt: skip
def test_a_usage_that_is_none_is_not_believed(usage):
    assert parse(json.dumps({**body(), "usage": usage}).encode(), True)[1] is None


def test_practically_never_is_zero_and_the_said_token_joins_alternatives_without_it():
    never = [{"token": "10", "logprob": -math.inf}, {"token": "20", "logprob": -9999.0}]
    reply = parsed(logprobs(top_logprobs=never))
    assert reply.top == (("10", -9999.0), ("20", -9999.0), ("90", -0.1))
    assert read_distribution(reply.top, 0.25).value == 90


def test_a_content_filter_is_a_reply_whatever_else_is_missing():
    reply = parsed(body(finish_reason="content_filter", message=None, logprobs=None))
    assert read(reply, True, 0.25) == Reading(None, "content_filter")


@pytest.mark.parametrize(
    ("text", "finish", "value", "reason"),
    [
        ("90", "stop", 90.0, None),
        (" 90.\n", "stop", 90.0, None),
        ("90", "length", None, "no_number"),  # perhaps the beginning of a longer text
        ("Refusal.", "stop", None, "refusal"),
        ("ninety", "stop", None, "no_number"),
        ("90/100", "stop", None, "no_number"),
        ("101", "stop", None, "no_number"),
    ],
)
def test_a_sampled_reply_is_a_number_alone_or_a_word_alone(text, finish, value, reason):
    assert read_text(Reply(text, finish)) == Reading(value, reason)


def test_samples_are_averaged_if_at_least_half_of_them_are_numbers():
    ten, ninety = Reading(10.0, None), Reading(90.0, None)
    none, code = Reading(None, "no_number"), Reading(None, "code")
    assert combined([ten, ninety, ninety, none, code], "sampled-5", "").value == pytest.approx(190 / 3)
    assert combined([ten, ninety, none, none], "sampled-4", "").value == 50
    assert combined([ten, code, code, code, none], "sampled-5", "").reason == "code"
    assert combined([ten, ninety, code, code, none], "sampled-5", "").reason == "no_number"
    assert combined([code, code, code, none, none, none], "sampled-6", "").reason == "no_number"
