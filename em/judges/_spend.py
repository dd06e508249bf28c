"""What judging costs: an estimate before, the count during, and limits that hold."""

from collections.abc import Sequence
from dataclasses import dataclass

from em.judges._reply import Usage

CHARACTERS_PER_TOKEN = 3.5
OVERHEAD = 64  # tokens that a chat template may put around a message
MILLION = 1_000_000


@dataclass(frozen=True)
class Size:
    """Of one call, known before it is made.

    Args:
        characters: of the message.
        octets: of the message in UTF-8; no tokenizer makes more tokens than bytes.
        reply: the most tokens that the reply may have.
    """

    characters: int
    octets: int
    reply: int

    @property
    def most(self) -> Usage:
        """What it costs at the very most; this much is reserved while it is in flight."""
        return Usage(self.octets + OVERHEAD, self.reply)


class Budget:
    """Counts tokens and money of all calls of a judge, and says when the next one might break a limit.

    What an endpoint bills for a request that it never answered cannot be known: a timeout is counted as
    estimated, once, however often the client has tried.

    Args:
        price: of a million tokens in the prompt and in the reply, in any currency.
        max_tokens, max_money: limits; None: none.
    """

    def __init__(
        self,
        price: Sequence[float] | None = None,
        max_tokens: int | None = None,
        max_money: float | None = None,
    ):
        self._price, self._max_tokens, self._max_money = price, max_tokens, max_money
        self._reserved: list[Usage] = []
        self._prompt = self._reply = 0
        self._seen_characters = self._seen_tokens = 0
        self._ahead_characters = self._ahead_reply = 0

    @property
    def tokens(self) -> int:
        """Spent so far."""
        return self._prompt + self._reply

    @property
    def in_flight(self) -> int:
        """Calls that hold a reservation."""
        return len(self._reserved)

    def money(self, usage: Usage) -> float:
        """The cost of some tokens at the given price; 0 without one."""
        if self._price is None:
            return 0.0
        return (usage.prompt * self._price[0] + usage.reply * self._price[1]) / MILLION

    def estimate(self, characters: int, reply: int) -> Usage:
        """Expected tokens of some calls, from what such calls turned out to cost, else at 3.5 a token."""
        rate = 1 / CHARACTERS_PER_TOKEN
        if self._seen_characters:
            rate = self._seen_tokens / self._seen_characters
        return Usage(round(characters * rate), reply)

    def plan(self, characters: int, reply: int) -> Usage:
        """Note what is about to be asked, and estimate it."""
        self._ahead_characters, self._ahead_reply = characters, reply
        return self.estimate(characters, reply)

    def reserve(self, size: Size) -> Usage | None:
        """Set aside the most that a call can cost; None if a limit might break."""
        most = size.most
        held = [*self._reserved, most]
        prompt = self._prompt + sum(usage.prompt for usage in held)
        reply = self._reply + sum(usage.reply for usage in held)
        if self._max_tokens is not None and prompt + reply > self._max_tokens:
            return None
        if self._max_money is not None and self.money(Usage(prompt, reply)) > self._max_money:
            return None
        self._reserved.append(most)
        return most

    def settle(self, reserved: Usage, size: Size, usage: Usage | None, billed: bool, learn: bool) -> None:
        """Replace a reservation by what the call has cost.

        Args:
            usage: as the endpoint counts; None: it does not say, and the estimate stands if it was `billed`.
            learn: the call is like those that are planned, so that estimates follow it.
        """
        self._reserved.remove(reserved)
        if usage is None and billed:
            spent = self.estimate(size.characters, size.reply)
        else:
            spent = usage or Usage(0, 0)
        self._prompt += spent.prompt
        self._reply += spent.reply
        if learn and usage is not None:
            self._seen_characters += size.characters
            self._seen_tokens += usage.prompt

    def finished(self, size: Size) -> None:
        """A planned call is over."""
        self._ahead_characters = max(0, self._ahead_characters - size.characters)
        self._ahead_reply = max(0, self._ahead_reply - size.reply)

    def words(self, usage: Usage) -> str:
        """Tokens, and money where there is a price."""
        cost = "" if self._price is None else f", cost {self.money(usage):,.2f}"
        return f"{usage.prompt + usage.reply:,} tokens{cost}"

    @property
    def status(self) -> str:
        """Spent so far, and about how much it will be."""
        left = self.estimate(self._ahead_characters, self._ahead_reply)
        total = Usage(self._prompt + left.prompt, self._reply + left.reply)
        return f"{self.words(Usage(self._prompt, self._reply))} of about {self.words(total)}"
