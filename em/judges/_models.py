"""What is publicly announced about models that serve as judges."""

from datetime import date

SHUTDOWNS = {"gpt-4o": date(2027, 1, 14), "gpt-4.1": date(2027, 1, 14)}  # families, as announced
WARN_DAYS = 180


def shutdown_warning(model: str, today: date) -> str | None:
    """A line about a judge that will soon be gone, or is; None for all others.

    Args:
        model: as the endpoint names it; vendor (`openai/`), size, date and `ft:` may stand around it.
    """
    name = model.rpartition("/")[2].removeprefix("ft:")
    for family, end in SHUTDOWNS.items():
        if name == family or name.startswith((f"{family}-", f"{family}:")):
            days = (end - today).days
            if days > WARN_DAYS:
                return None
            when = f"in {days} days" if days > 0 else "so it may be gone"
            return (
                f"judge {model}: OpenAI has announced to shut it down on {end}, {when}; scores of another "
                "judge are not comparable with its own, so judge all that is to be compared before then"
            )
    return None
