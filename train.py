"""Train one experiment or a suite: python train.py conf/x.yaml key=value …"""

import sys
from pathlib import Path

from em.config import Experiment, Suite, load, load_pool
from em.errors import ConfigError, EmError


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stderr.write("usage: python train.py CONF.yaml [key=value …] [--member=NAME]\n")
        return 0 if arguments else 2
    conf = Path(arguments[0])
    member = next((text.split("=", 1)[1] for text in arguments[1:] if text.startswith("--member=")), None)
    overrides = [text for text in arguments[1:] if not text.startswith("--member=")]
    try:
        loaded = _loaded(conf, overrides, member)  # every error, before anything heavy is imported
        return run(loaded, conf, overrides, member)
    except EmError as error:
        lines = str(error).splitlines()
        text = lines[0] if len(lines) == 1 else "\n  ".join(["", *lines])
        sys.stderr.write(f"\n{type(error).__name__}: {text}\n")
        if hasattr(error, "signal_number"):
            sys.stderr.write("Run the same command to go on.\n")
            return 128 + int(error.signal_number)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Run the same command to go on from the last checkpoint.\n")
        return 130


def _loaded(conf: Path, overrides: list[str], member: str | None) -> Experiment | Suite:
    """What the file stands for; for one member that of it alone: others may lack their data."""
    if member is None:
        return load(conf, overrides)
    configs, absent = load_pool(conf, overrides, [member])
    if absent:
        raise ConfigError(f"{member}: {absent[member]}")
    return Suite("", conf, configs, {})


def run(loaded: object, conf: Path, overrides: list[str], member: str | None) -> int:
    from em.experiment import train
    from em.quiet import quiet
    from em.suite import Outcome, show, train_members, write_comparison

    quiet()
    if isinstance(loaded, Suite) and member is None:
        return train_members(loaded, conf, overrides)
    if isinstance(loaded, Suite):
        config = loaded.members[str(member)]
    else:
        assert isinstance(loaded, Experiment)
        config = loaded.config
    directory = train(config)
    show(write_comparison(directory.path, [Outcome(config.name, directory)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
