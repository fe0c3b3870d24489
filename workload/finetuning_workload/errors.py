"""How a program says that it cannot go on."""

from finetuning_api.reasons import ExitCode, Reason


class ProgramError(Exception):
    """A failure that a person can read: what happened, why, and what to do.

    ``message`` names the field or the input and its value; ``hint`` says what to do about it.
    """

    exit_code: ExitCode = ExitCode.ENVIRONMENT

    def __init__(self, reason: Reason, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.hint = hint


class UserError(ProgramError):
    """The user's input is wrong: trying again cannot help."""

    exit_code = ExitCode.USER_ERROR


class EnvironmentFault(ProgramError):
    """The network, the disk or the machine failed: trying again may help."""

    exit_code = ExitCode.ENVIRONMENT


class Interrupted(ProgramError):
    """The program was asked to stop and has saved what it had."""

    exit_code = ExitCode.INTERRUPTED

    def __init__(self, message: str) -> None:
        super().__init__(Reason.INTERRUPTED, message, "It goes on from there when it is started again.")
