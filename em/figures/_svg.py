"""Turn matplotlib's SVG into one that lives in a page: CSS variables, its own ids, a text alternative."""

import re
import xml.etree.ElementTree as ET

from em.figures._theme import STAND_INS, css
from em.figures.words import plain

NAMESPACE = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
VARIABLES = {stand_in: f"var(--{name})" for name, stand_in in STAND_INS.items()}
DECIMALS = re.compile(r"(\d\.\d\d)\d+")
REFERENCE = re.compile(r"url\(#([^)]+)\)")


def for_page(text: str, name: str, title: str, description: str) -> str:
    """The SVG without prolog, metadata and foreign ids; colours are variables that the page defines.

    Args:
        text: as matplotlib wrote it, drawn in the stand-in colours.
        name: prefix of every id, different for each SVG of a page.
        title: read aloud first.
        description: the text alternative.
    """
    root = ET.fromstring(text)
    view = root.attrib["viewBox"]
    _drop(root)
    _rename(root, name)
    for node in root.iter():
        node.tag = node.tag.removeprefix(NAMESPACE)
        _restyle(node)
    labels = []
    for at, (tag, content) in enumerate((("title", title), ("desc", description))):
        label = ET.Element(tag, {"id": f"{name}--{tag}"})
        label.text = plain(content)
        root.insert(at, label)
        labels.append(label.attrib["id"])
    root.attrib = {
        "xmlns": NAMESPACE.strip("{}"),
        "viewBox": view,
        "role": "img",
        "aria-labelledby": " ".join(labels),
        "style": "font-family: var(--font); stroke-linejoin: round; stroke-linecap: butt",
    }
    return ET.tostring(root, encoding="unicode")


def stand_alone(svg: str) -> str:
    """The same as a file of its own, which defines the variables and has a size."""
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    start, rest = svg.split(">", 1)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'{start} width="{width}pt" height="{height}pt"><style>{css()}svg {{ background: var(--surface); }}'
        f"</style>{rest}\n"
    )


def _drop(root: ET.Element) -> None:
    """Metadata, and matplotlib's rule for every element, which would reach the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{NAMESPACE}metadata", f"{NAMESPACE}style"):
                parent.remove(child)
    for child in list(root):
        if child.tag == f"{NAMESPACE}defs" and not len(child):
            root.remove(child)


def _rename(root: ET.Element, name: str) -> None:
    """Number the ids that are referred to, drop the others."""
    used: dict[str, str] = {}
    for node in root.iter():
        for key, value in node.attrib.items():
            found = [value[1:]] if key == LINK else REFERENCE.findall(value)
            for old in found:
                used.setdefault(old, f"{name}--{len(used) + 1}")
    for node in root.iter():
        old = node.attrib.pop("id", "")
        if old in used:
            node.attrib["id"] = used[old]
        link = node.attrib.pop(LINK, "")
        if link:
            node.attrib["href"] = f"#{used[link[1:]]}"
        for key, value in node.attrib.items():
            node.attrib[key] = REFERENCE.sub(lambda match: f"url(#{used[match[1]]})", value)


def _restyle(node: ET.Element) -> None:
    for key in ("d", "x", "y", "transform", "points", "width", "height"):
        if key in node.attrib:
            node.attrib[key] = DECIMALS.sub(r"\1", node.attrib[key].replace("\n", " ")).strip()
    style = node.attrib.get("style")
    if style is not None:
        kept = [part.strip() for part in style.split(";") if not part.strip().startswith("font-family")]
        text = "; ".join(kept)
        node.attrib["style"] = re.sub("#[0-9a-f]{6}", lambda match: VARIABLES[match[0]], text)
