"""Dead letters as an operator handles them."""

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
