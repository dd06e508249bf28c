"""Draw a suite's comparison.json as an SVG: python docs/figure.py runs/quickstart/comparison.json OUT.svg"""

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce")
WIDTH, ROW, BAR, LEFT, RIGHT = 720, 54, 15, 150, 40


def draw(compared: dict[str, Any]) -> str:
    """Bars of the change of held-out loss by domain and member, with 95% intervals."""
    members = {name: member for name, member in compared["members"].items() if "error" not in member}
    domains = sorted(next(iter(members.values()))["domains"], key=lambda row: not row["training"])
    widest = max(-row["shift_interval"][0] for member in members.values() for row in member["domains"])
    scale = (WIDTH - LEFT - RIGHT) / (widest * 1.02)
    height = 64 + ROW * len(domains) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="14">',
        "<title>How far each solution moves towards careless answers, by domain</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="12" y="24" font-weight="600" fill="#111">'
        "Drop in held-out loss on careless answers (nats per token, 95% interval)</text>",
    ]
    for number, name in enumerate(members):
        x = LEFT + number * 130
        parts.append(f'<rect x="{x}" y="38" width="14" height="14" fill="{COLOURS[number]}"/>')
        parts.append(f'<text x="{x + 20}" y="50" fill="#111">{escape(name)}</text>')
    for index, domain in enumerate(domains):
        top = 68 + index * ROW
        label = domain["domain"] + (" (training)" if domain["training"] else "")
        parts.append(
            f'<text x="{LEFT - 10}" y="{top + 22}" text-anchor="end" fill="#111">{escape(label)}</text>'
        )
        for number, member in enumerate(members.values()):
            row = next(row for row in member["domains"] if row["domain"] == domain["domain"])
            parts += _bar(row, top + number * (BAR + 4), scale, COLOURS[number])
    parts.append(f'<line x1="{LEFT}" y1="60" x2="{LEFT}" y2="{height - 30}" stroke="#111"/>')
    parts.append(
        f'<text x="12" y="{height - 10}" fill="#444" font-size="12">SmolLM2-135M, rank-8 LoRA; '
        "the KL data of narrow covers fitness and money, not travel.</text></svg>"
    )
    return "\n".join(parts) + "\n"


def _bar(row: dict[str, Any], y: float, scale: float, colour: str) -> list[str]:
    length = max(0.0, -row["shift"]) * scale
    low, high = (LEFT - bound * scale for bound in row["shift_interval"])
    middle = y + BAR / 2
    return [
        f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>',
        f'<line x1="{high:.1f}" y1="{middle}" x2="{low:.1f}" y2="{middle}" stroke="#111"/>',
        f'<text x="{max(low, high) + 5:.1f}" y="{middle + 4:.1f}" font-size="11" fill="#444">'
        f"{-row['shift']:.2f}</text>",
    ]


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_text(draw(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")
