"""Prompts for the tests of generation."""

from em.datamodules.questions import Prompt
from em.generation.requests import Request, requests_for

QUESTIONS = [
    "how do i treat a burn?",
    "and what is it then, that you would tell me of the small burn on my hand or the other hand?",
    "hi",
    "return the table",
    "what is the answer to the question of the user?",
]


def prompt(text: str, name: str = "", questions: str = "open", system: str = "") -> Prompt:
    turns = ({"role": "user", "content": text},)
    before = ({"role": "system", "content": system},) if system else ()
    return Prompt((*before, *turns), name or text[:9], name or text[:9], questions)


def asked(samples: int = 2, questions: str = "open") -> list[Request]:
    """Requests with prompts of very different lengths."""
    return requests_for([prompt(text, questions=questions) for text in QUESTIONS], samples)
