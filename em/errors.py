"""Every error a user can cause. Each message says what is wrong and what to change."""


class EmError(Exception):
    """Base of all errors that the command line shows without a traceback."""


class ConfigError(EmError):
    """One or more problems in a configuration, all reported together.

    Args:
        problems: one line for each problem, naming the key, the value and the fix.
    """

    def __init__(self, problems: str | list[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(EmError):
    """A data file, row or chat template that cannot be used; names file and line."""


class BackboneError(EmError):
    """A model or tokenizer that cannot be loaded or lacks what is needed."""


class AdapterError(EmError):
    """An intervention that does not fit the backbone it is attached to."""


class RunError(EmError):
    """A run directory that is finished, foreign, incomplete or not writable."""


class StateError(EmError):
    """Stored states of the frozen model that cannot be written, or that are not what they should be."""


class TrainingError(EmError):
    """Training cannot go on, for example because the loss is not finite."""


class MeasurementError(EmError):
    """A measurement whose inputs cannot give a number, for example an empty group."""


class JudgeError(EmError):
    """A judge that cannot be used at all; one answer that it cannot score is a verdict with a reason."""


class GenerationError(EmError):
    """Answers that cannot be generated, or an endpoint that does not give them."""


class Interrupted(EmError):
    """The run was asked to stop and has saved itself.

    Args:
        signal_number: the signal that asked for it; the exit status is 128 + this number.
    """

    def __init__(self, message: str, signal_number: int):
        self.signal_number = signal_number
        super().__init__(message)
