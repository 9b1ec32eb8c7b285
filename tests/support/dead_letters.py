"""Dead letters as an operator handles them."""

from collections.abc import Callable, Sequence

import pytest

from golem_tasks import DeadLetterError, DeadLetters
from tests.support.waiting import wait_until


def requeue(dead: DeadLetters, letter_id: str) -> None:
    """Requeue a letter, again for as long as its worker has yet to acknowledge the message."""

    def done() -> bool:
        try:
            dead.requeue(letter_id)
        except DeadLetterError as exc:
            assert "isn't acknowledged" in str(exc)  # noqa: PT017 - any other error is a failure
            return False
        return True

    wait_until(done, "the message to be acknowledged")


class Terminal:
    """Runs the `golem` command in this process: exit code, stdout, stderr."""

    def __init__(
        self, main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._main = main
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Run the command to its end."""
        code = self._main(arguments)
        said = self._capsys.readouterr()
        return code, said.out, said.err
