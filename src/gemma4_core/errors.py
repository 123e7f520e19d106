"""Errors that a user can cause. Each message says what is wrong, where, and what to do next, in one line."""


class Gemma4Error(Exception):
    """Base of every error that a user can cause; the command shows it as one line without a traceback."""


class ConfigError(Gemma4Error):
    """config.json is missing, broken, or describes something that this runtime does not support."""


class CheckpointError(Gemma4Error):
    """The files of a checkpoint folder are missing, damaged, or disagree with its config.

    ``faults`` holds every fault found; the message names their number and the first few.
    """

    def __init__(self, message: str, faults: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults


class PluginError(Gemma4Error):
    """A plugin is unknown, absent, ambiguous, or failed to load."""


class InputError(Gemma4Error):
    """A prompt, token id, media file or option cannot be used with this model."""


class TokenizerError(Gemma4Error):
    """Tokenizer files or a chat template are missing, damaged, or failed."""


class DeviceError(Gemma4Error):
    """No usable device or compiler, or the device ran out of memory."""


class Gemma4Warning(UserWarning):
    """Something that a user should know and that stops nothing; the command shows it as one line on stderr."""


FAULTS_SHOWN, CHARACTERS_SHOWN = 3, 300
"""Of several faults the message names so many, fewer where they are long."""


def summarise(what: str, faults: list[str], where: str) -> CheckpointError:
    """One error for several faults: their count, the first few, and all of them in ``faults``."""
    count = min(len(faults), FAULTS_SHOWN)
    while count > 1 and sum(map(len, faults[:count])) > CHARACTERS_SHOWN:
        count -= 1
    shown = "; ".join(faults[:count])
    more = f"; and {len(faults) - count} more (GEMMA4_DEBUG=1 lists all)" if len(faults) > count else ""
    return CheckpointError(f"{where}: {len(faults)} {what}: {shown}{more}", tuple(faults))
