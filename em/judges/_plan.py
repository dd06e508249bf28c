"""Before anything is asked: how many calls there are, and what they will cost."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from em.errors import JudgeError
from em.judges._calls import Caller
from em.judges._spend import Size, Usage
from em.progress import say


@dataclass(frozen=True)
class Plan:
    """What a stretch of work needs.

    Args:
        replies: all that are needed, each once.
        calls: those that are not in the cache.
        need: estimated tokens of the calls.
    """

    replies: int
    calls: int
    need: Usage


async def plan(caller: Caller, batches: Iterable[dict[bytes, Size]]) -> Plan:
    """Count and estimate the calls that are not in the cache.

    Args:
        batches: the calls by key, a few hundred at a time: between two of them other work has its turn.
    """
    seen: set[bytes] = set()
    calls = characters = reply = 0
    for batch in batches:
        new = caller.cache.missing([key for key in batch if key not in seen])
        seen.update(batch)
        calls += len(new)
        characters += sum(batch[key].characters for key in new)
        reply += sum(batch[key].reply for key in new)
        await asyncio.sleep(0)
    return Plan(len(seen), calls, caller.budget.plan(characters, reply))


def agree(caller: Caller, name: str, found: Plan, most: int, yes: bool) -> None:
    """Say what is about to be spent, and refuse much of it unless the user has agreed.

    Args:
        most: tokens that need no agreement, together with those that this judge has spent already.

    Raises:
        JudgeError: with the estimate and how to agree.
    """
    cached = f"{found.replies - found.calls:,} of {found.replies:,} replies are in the cache"
    words = f"{found.calls:,} calls, about {caller.budget.words(found.need)}"
    say(f"judge {name}: {words if found.calls else 'nothing is asked'}; {cached}")
    expected = caller.budget.tokens + found.need.prompt + found.need.reply
    if found.calls and expected > most and not yes:
        raise JudgeError(
            f"judge {name} needs {words}, more than confirm_above_tokens ({most:,}); agree with --yes "
            "(yes: true), or judge fewer answers"
        )
