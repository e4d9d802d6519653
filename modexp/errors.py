"""Errors that a person reads: one sentence with key, value and rule, and one line that says what to do next."""

from __future__ import annotations

import sys


class ModexpError(Exception):
    """A failure that is reported as a sentence, never as a traceback. ``exit_code`` is the process's."""

    exit_code = 1

    def __init__(self, sentence: str, next_step: str = "") -> None:
        super().__init__(sentence, next_step)  # both, or it could not be sent from process to process
        self.sentence = sentence
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.sentence}\n  {self.next_step}" if self.next_step else self.sentence


class UserError(ModexpError):
    """The request cannot be carried out as written: the user can change it (exit code 2).

    Where the value of a setting is not one of few, ``key`` and ``choices`` name them: completion asks for these.
    """

    exit_code = 2
    key: str = ""
    choices: tuple[str, ...] = ()


class RunFailed(ModexpError):
    """A run or study started and did not reach its end (exit code 1)."""

    exit_code = 1


class Interrupted(ModexpError):
    """Stopped from outside after saving its state (exit code 130)."""

    exit_code = 130


def complain(error: ModexpError) -> None:
    """Tell a person, on stderr."""
    print(f"modexp: error: {error}", file=sys.stderr, flush=True)
