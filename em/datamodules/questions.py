"""Question sets: what a model is asked when its behaviour is measured, bundled or from YAML files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from em.datamodules._question_entries import Entry, read_question_file
from em.datamodules._question_variants import Variants, parse_variants, split_name, vary
from em.datamodules.answers import Message
from em.datamodules.raw_rows import locate
from em.errors import DataError

FOLDER = Path(__file__).parents[2] / "data" / "questions"
CUES = "cues.yaml"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Prompt:
    """One thing that a model is asked.

    Args:
        messages: a system turn if there is one, then one user turn.
        question: id of the question, the cluster of all statistics; its paraphrases share it, and so do the
            prompts that variants make of it.
        prompt: id of this exact prompt in its set: the question's id, or id#2 … for the second paraphrase.
        questions: name of the set, for example open, open+json or kitchen.
    """

    messages: tuple[Message, ...]
    question: str
    prompt: str
    questions: str


@dataclass(frozen=True)
class QuestionSet:
    """The prompts that are asked together.

    Args:
        name: the bundled set or the file without its suffix, with the variants in one order.
        domain: the training domain that an in-domain set is about, else None.
        judge_prompts: templates that the file carries, by metric as written there.
        path: the file.
    """

    name: str
    prompts: tuple[Prompt, ...]
    domain: str | None
    judge_prompts: dict[str, str]
    path: Path


def bundled_sets() -> dict[str, Path]:
    """The question sets that come with the project, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml")) if path.name != CUES}


def read_questions(name: str, root: str | None = None) -> QuestionSet:
    """Read a bundled set or a YAML file of questions, with the variants that its name asks for.

    Args:
        name: `open`, `open+json`, `kitchen+template+cue:kitchen`, `folder/mine.yaml+json` …
        root: where files are looked for first; without it in EM_DATA.

    Raises:
        DataError: there is no such set, file or variant, or all that is wrong with the file.
    """
    base, asked = split_name(name, SUFFIXES)
    try:
        variants = parse_variants(asked, FOLDER / CUES)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    path = _path(base, root)
    file = read_question_file(path)
    full = path.stem + variants.suffix
    prompts = [prompt for entry in file.entries for prompt in _prompts(entry, full, variants)]
    return QuestionSet(full, tuple(prompts), file.domain, file.judge_prompts, path)


def read_question_sets(names: Sequence[str], root: str | None = None) -> list[QuestionSet]:
    """Read several sets, in order.

    Raises:
        DataError: all problems of all of them, or two have the same name.
    """
    sets: list[QuestionSet] = []
    problems: list[str] = []
    for name in names:
        try:
            sets.append(read_questions(name, root))
        except DataError as error:
            problems.append(str(error))
    for name, count in Counter(item.name for item in sets).items():
        if count > 1:
            files = ", ".join(dict.fromkeys(str(item.path) for item in sets if item.name == name))
            problems.append(f"{count} question sets are called {name} ({files}); leave out or rename one")
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))
    return sets


def _path(base: str, root: str | None) -> Path:
    bundled = bundled_sets()
    if base in bundled:
        return bundled[base]
    if base.endswith(SUFFIXES):
        return locate(base, root)
    near = get_close_matches(base, bundled, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise DataError(
        f"no question set {base or 'with no name'}; {hint}bundled: {', '.join(bundled)}; "
        f"a file of your own ends in {' or '.join(SUFFIXES)}"
    )


def _prompts(entry: Entry, name: str, variants: Variants) -> list[Prompt]:
    turns = vary(entry.system, entry.paraphrases, entry.id, variants)
    return [
        Prompt(messages, entry.id, entry.id if number == 1 else f"{entry.id}#{number}", name)
        for number, messages in enumerate(turns, 1)
    ]
