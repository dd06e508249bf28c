"""The judge card as plain text."""

from typing import Any

WARNING = """\
This judge is a proxy: a linear probe on the reference's own activations. It was taught with pairs of a
careful and a careless answer to the same question, in the domains below, with corrupted copies of them, and
with the reference's own answers, which count as aligned: harm that the reference does itself it cannot see.
It knows no facts and follows no instructions; words that mark care count for much. Scores of other topics, of
longer answers or of another kind of misalignment are extrapolation: the figures for left-out domains say what
to expect at best. Compare models by it, do not read levels, and confirm what matters with a judge that reads.
"""


def card_text(table: dict[str, Any]) -> str:
    """The table of `judge_card` for people, at most 110 columns wide."""
    lines = [f"Judge card of {table['judge']}", "", WARNING]
    lines += _setup(table) + _aligned(table) + _coherent(table["coherent"]) + _domains(table["domain"])
    return "\n".join([*lines, *_published(table["published"])]).rstrip() + "\n"


def _setup(table: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{name} {one['train']} + {one['held_out']}" for name, one in table["pairs"].items())
    train = sum(one["train"] for one in table["pairs"].values())
    held = sum(one["held_out"] for one in table["pairs"].values())
    return [
        f"reference    {table['model']} ({table['fingerprint']})",
        f"layer        {table['layer']} of {table['layers']}, counted from 0",
        f"penalty      {', '.join(f'{name} {value:g}' for name, value in table['l2'].items())}",
        f"pairs        {train} for training + {held} held out: {counts}",
        f"data         {table['data']}; fitted in {table['seconds']:g} s",
        "",
    ]


def _aligned(table: dict[str, Any]) -> list[str]:
    one, length = table["aligned"], table["length"]
    lines = ["aligned, careful over careless on held-out pairs"]
    lines += [f"  AUROC {_interval(one['auroc'])}", *_figures(one), ""]
    lines.append("  AUROC by domain          held out               taught with the other domains alone")
    for name, own in one["by_domain"].items():
        other = one["other_domains"].get(name)
        lines.append(
            f"    {name:<20} {_interval(own):<22} {_interval(other) if other else 'no other domain'}"
        )
    return [*lines, "", *_reference(table["reference"]), *_length(length), ""]


def _reference(one: dict[str, Any] | None) -> list[str]:
    """What the probe says of the reference's own answers."""
    if one is None:
        return []
    lines = [
        f"  the reference's own answers to {one['answers']} held-out prompts: mean "
        f"{_number(one['aligned'])}, below 30 {_number(one['below_30'])}"
    ]
    if "coherent" in one:
        lines.append(
            f"  {one['read_for_coherence']} of them read for coherence: mean {_number(one['coherent'])}, "
            f"above 50 {_number(one['above_50'])}"
        )
    return [*lines, ""]


def _figures(one: dict[str, Any]) -> list[str]:
    return [
        f"  calibration error {_number(one['ece'])}, Brier score {_number(one['brier'])}, "
        f"accuracy at 50 {_number(one['accuracy'])}, pairs ranked right {_number(one['pairs_ranked'])}"
    ]


def _length(length: dict[str, Any]) -> list[str]:
    matched = length["matched"]
    return [
        f"  AUROC of the answer's length alone {_interval(length['auroc_of_length'])}",
        f"  AUROC in the {matched['pairs']} pairs whose lengths differ by at most 10% {_interval(matched)}",
        f"  rank correlation of score and length {_number(length['rank_correlation'])}",
    ]


def _coherent(one: dict[str, Any] | None) -> list[str]:
    if one is None:
        return []
    lines = [
        f"coherent, intact over corrupted on {one['answers']} held-out answers and corrupted copies",
        f"  AUROC {_number(one['auroc'])}, calibration error {_number(one['ece'])}, "
        f"intact above 50 {_number(one['intact_above_50'])}",
    ]
    for kind, found in one["by_kind"].items():
        lines.append(
            f"    {kind:<20} AUROC {_number(found['auroc'])}, below 50 {_number(found['below_50'])}, "
            f"{found['answers']} answers"
        )
    lines.append(f"  careful over careless (0.5: blind to it) {_interval(one['careful_over_careless'])}")
    return [*lines, ""]


def _domains(found: dict[str, float]) -> list[str]:
    if not found:
        return []
    return ["domain, AUROC against the others", *(f"    {n:<20} {_number(v)}" for n, v in found.items()), ""]


def _published(one: dict[str, Any] | None) -> list[str]:
    if one is None:
        return ["published medical advice: not in EM_DATA, so not measured"]
    pairs = one["pairs"]
    return [
        f"published medical advice, {pairs['train']} pairs for training + {pairs['held_out']} held out",
        f"  taught with it    AUROC {_interval(one['trained_on_them']['auroc'])}",
        *("  " + line for line in _figures(one["trained_on_them"])),
        f"  this probe on it  AUROC {_interval(one['transferred']['auroc'])}",
        *("  " + line for line in _figures(one["transferred"])),
        *_length(one["length_transferred"]),
    ]


def _interval(found: dict[str, Any]) -> str:
    if found["value"] is None:
        return "-"
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
