"""One outcome for each text, whatever goes wrong on the way."""

import logging
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golem_tasks.contract import OnLong, Options, Prediction, TextItem
from golem_tasks.errors import InferenceError, JobError, OutOfMemory, TextTooLong
from tests.support.fake_engine import FakeEngine, expected_label, expected_logits
from worker.ceiling import CALM_S
from worker.classifier import Classified, Classifier, Work
from worker.interfaces import DeviceLost, Encoded, Launched, Row

DEFAULT = Options()


class TimeLimit(Exception):
    """Stands for what a caller's own signal handler raises."""


def works(*texts: str, options: Options = DEFAULT) -> list[Work]:
    """Works of these texts."""
    return [Work(TextItem(text), options, queued_ms=0.0) for text in texts]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different texts of 1 to 30 words."""
    chance = random.Random(seed)  # noqa: S311 - test data
    words = ["a", "film", "that", "moves", "slowly", "and", "never", "lies"]
    return [
        f"{i} " + " ".join(chance.choices(words, k=chance.randint(1, 30))) for i in range(count)
    ]


def check(result: Classified, texts: Sequence[str]) -> None:
    """Every outcome of these innocent texts is the right prediction."""
    assert len(result.outcomes) == len(texts)
    for text, outcome in zip(texts, result.outcomes, strict=True):
        assert isinstance(outcome, dict), (text, outcome)
        assert Prediction.model_validate(outcome).label == expected_label(text)


def check_around(
    result: Classified, texts: Sequence[str], culprits: Sequence[int]
) -> list[JobError]:
    """The errors of the culprits; everybody else has the right prediction."""
    errors = [result.outcomes[i] for i in culprits]
    innocent = [i for i in range(len(texts)) if i not in culprits]
    mates = Classified([result.outcomes[i] for i in innocent], result.micro_batches)
    check(mates, [texts[i] for i in innocent])
    assert all(isinstance(error, JobError) for error in errors)
    return [error for error in errors if isinstance(error, JobError)]


def test_every_text_gets_its_own_answer_in_order() -> None:
    """Sorting and packing don't show: outcome i is work i's."""
    texts = sentences(300)
    check(Classifier(FakeEngine(token_budget=200)).classify(works(*texts)), texts)


def test_nothing_gives_nothing() -> None:
    """An empty dispatch, as when all its jobs were revoked, runs no forward pass."""
    result = Classifier(FakeEngine()).classify([])
    assert result.outcomes == []
    assert result.micro_batches == []


def test_micro_batches_keep_both_bounds_and_account_for_every_token() -> None:
    """What is reported is what was run: rows, longest row and tokens."""
    engine = FakeEngine(token_budget=200, max_rows=7)
    texts = sentences(100)
    batches = Classifier(engine).classify(works(*texts)).micro_batches
    assert [batch.rows for batch in batches] == [len(launched) for launched in engine.launched]
    assert all(batch.rows <= 7 and batch.rows * batch.longest <= 200 for batch in batches)
    assert sum(batch.tokens for batch in batches) == sum(len(t.split()) + 2 for t in texts)


@pytest.mark.parametrize(
    ("order", "kind", "words"),
    [
        ("raise:no such index", InferenceError, "'forward'.*RuntimeError: no such index"),
        ("encode:bad byte", InferenceError, "'encode'.*ValueError: bad byte"),
        ("nan", InferenceError, "'forward'.*NaN"),
        ("pack", InferenceError, "'pack'.*ValueError: no length"),
        ("words", InferenceError, "'decode'.*TypeError"),
        ("labels:5", InferenceError, "'forward'.*5 logits came back for 3 labels"),
        ("raises:KeyboardInterrupt", InferenceError, "'forward'.*KeyboardInterrupt"),
        ("raises:SystemExit", InferenceError, "'forward'.*SystemExit"),
        ("raises:RecursionError", InferenceError, "'forward'.*RecursionError"),
        ("raises:Mute", InferenceError, "'forward': Mute"),
        ("rows:-1", InferenceError, "'forward'.*0 answers came back for 1 rows"),
        ("rows:+2", InferenceError, "'forward'.*3 answers came back for 1 rows"),
        ("oom", OutOfMemory, "This text alone doesn't fit"),
        ("memory", OutOfMemory, "This text alone doesn't fit"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_culprit_fails_alone(order: str, kind: type[JobError], words: str, device: str) -> None:
    """Whatever one text does, on a device that overlaps passes or not, its mates don't notice."""
    texts = sentences(64)
    texts[41] = order
    engine = FakeEngine(token_budget=300, device=device)
    result = Classifier(engine, passes=lambda _: False).classify(works(*texts))
    [error] = check_around(result, texts, [41])
    assert type(error) is kind
    with pytest.raises(kind, match=words):
        raise error


@pytest.mark.parametrize("order", ["crowd:4", "spread"])
def test_what_only_befalls_a_crowd_fails_nobody(order: str) -> None:
    """An engine that raises for 4 rows or more, or answers a whole micro-batch with one's NaN."""
    texts = sentences(64)
    texts[41] = order
    result = Classifier(FakeEngine(token_budget=300)).classify(works(*texts))
    if order == "spread":
        [error] = check_around(result, texts, [41])
        assert "NaN" in str(error)
    else:
        check(result, texts)


def test_several_culprits_fail_each_with_its_own_error() -> None:
    """Halving goes on after the first one is found."""
    texts = sentences(64)
    for index in (0, 7, 8, 63):
        texts[index] = f"raise:number {index}"
    result = Classifier(FakeEngine()).classify(works(*texts))
    errors = check_around(result, texts, [0, 7, 8, 63])
    assert [f"number {i}" in str(e) for i, e in zip([0, 7, 8, 63], errors, strict=True)] == [
        True
    ] * 4


@given(
    st.lists(st.sampled_from(["good", "raise:x", "oom", "encode:x", "nan", "rows:-1"]), max_size=40)
)
def test_any_mix_of_trouble_leaves_every_text_with_its_outcome(kinds: list[str]) -> None:
    """The good ones are answered and only they."""
    texts = [f"good {i}" if kind == "good" else kind for i, kind in enumerate(kinds)]
    result = Classifier(FakeEngine(token_budget=64, max_rows=16)).classify(works(*texts))
    check_around(result, texts, [i for i, kind in enumerate(kinds) if kind != "good"])


def test_a_text_that_is_too_long_is_told_so() -> None:
    """An item's own error in the engine's list is its outcome."""
    texts = ["short", "word " * 600]
    result = Classifier(FakeEngine()).classify(works(*texts, options=Options(on_long="error")))
    [error] = check_around(result, texts, [1])
    assert isinstance(error, TextTooLong)


def test_a_text_without_tokens_is_an_error_not_a_crash() -> None:
    """A tokenizer may make nothing of a text, such as one zero-width character."""

    class Mute(FakeEngine):
        def encode(
            self, items: Sequence[TextItem], on_long: Sequence[OnLong]
        ) -> list[Encoded | JobError]:
            encoded = super().encode(items, on_long)
            encoded[0] = Encoded((Row([]),), 0, truncated=False)
            return encoded

    texts = sentences(5)
    [error] = check_around(Classifier(Mute()).classify(works(*texts)), texts, [0])
    assert "made no tokens of it" in str(error)


def test_fewer_encodings_than_texts_name_both_numbers() -> None:
    """A tokenizer that drops a text can't shift its mates' answers by one."""

    class Forgetful(FakeEngine):
        def encode(
            self, items: Sequence[TextItem], on_long: Sequence[OnLong]
        ) -> list[Encoded | JobError]:
            kept = [i for i, item in enumerate(items) if item.text != "lost one"]
            return super().encode([items[i] for i in kept], [on_long[i] for i in kept])

    texts = [*sentences(9), "lost one"]
    [error] = check_around(Classifier(Forgetful()).classify(works(*texts)), texts, [9])
    assert "0 answers came back for 1 texts" in str(error)


def test_windows_of_one_text_share_micro_batches_with_its_mates() -> None:
    """A long text is several rows and still one outcome, the average of its windows."""
    long = " ".join(str(i) for i in range(1200))
    texts = [*sentences(5), long]
    options = Options(on_long="window", logits=True)
    result = Classifier(FakeEngine()).classify(works(*texts, options=options))
    answer: Any = result.outcomes[-1]
    parts = [" ".join(long.split()[a : a + 510]) for a in (0, 510, 1020)]
    for column, value in enumerate(answer["logits"]):
        mean = sum(expected_logits(part)[column] * len(part.split()) for part in parts) / 1200
        assert value == pytest.approx(mean)
    assert (answer["tokens"], answer["truncated"]) == (1202, False)


def test_out_of_memory_runs_the_same_work_in_smaller_pieces(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody fails, the allocator's reserve is given back, one warning says what was learned."""
    engine = FakeEngine(token_budget=1000, max_area=150)
    classifier = Classifier(engine)
    texts = sentences(64)
    with caplog.at_level(logging.WARNING):
        check(classifier.classify(works(*texts)), texts)
    assert engine.released > 0
    assert classifier.token_budget <= 150
    [record] = caplog.records
    assert "instead of 1000" in record.getMessage()


def test_what_was_learned_spares_the_next_dispatch_the_trouble() -> None:
    """The lowered budget holds: no second out of memory."""
    engine = FakeEngine(token_budget=1000, max_area=150)
    classifier = Classifier(engine)
    classifier.classify(works(*sentences(64)))
    released = engine.released
    classifier.classify(works(*sentences(64, seed=1)))
    assert engine.released == released


def test_a_lowered_budget_grows_back_when_the_memory_is_there_again() -> None:
    """Another process's moment of greed slows nobody for ever, and every change is told."""
    now_s = 0.0
    told: list[int] = []
    engine = FakeEngine(token_budget=1000, max_area=150)
    classifier = Classifier(
        engine, clock=lambda: now_s, on_ceiling=lambda ceiling: told.append(ceiling.tokens)
    )
    classifier.classify(works(*sentences(64)))
    engine.max_area = None
    for minute in range(20):
        now_s = minute * CALM_S
        classifier.classify(works(*sentences(64, seed=minute)))
    assert classifier.token_budget == 1000
    assert told[0] <= 150
    assert told == sorted(set(told))
    assert told[-1] == 1000


def test_a_text_that_is_out_of_memory_by_itself_doesnt_lower_the_budget() -> None:
    """It fails alone as well, so its mates' number wasn't the cause."""
    classifier = Classifier(FakeEngine(token_budget=1000))
    classifier.classify(works(*sentences(63), "oom"))
    assert classifier.token_budget == 1000


def test_what_another_micro_batch_ran_into_beside_it_still_holds() -> None:
    """Two in flight: one holds a text too large for any, the other is too large itself."""

    def forward(texts: list[str]) -> None:
        area = len(texts) * max(len(text.split()) + 2 for text in texts)
        if area > 150 or any(text.startswith("large:") for text in texts):
            raise RuntimeError("out of memory")

    culprit = "large:" + "word " * 30 + "end"
    texts = [culprit, *(f"{'long ' * 30}{n}" for n in range(3)), *(f"short {n}" for n in range(45))]
    classifier = Classifier(FakeEngine(token_budget=200, device="cuda", on_forward=forward))
    assert check_around(classifier.classify(works(*texts)), texts, [0])
    assert classifier.token_budget <= 150


def test_a_text_isnt_told_it_doesnt_fit_before_it_had_the_device_to_itself() -> None:
    """A micro-batch still in flight takes room as well: the text waits for it and runs again."""

    class Crowded(FakeEngine):
        def launch(self, rows: Sequence[Row]) -> Any:
            waiting = len(self.launched) - collected
            launched = super().launch(rows)
            if waiting and rows[0].length > 300:
                self.launched.pop()
                raise RuntimeError("out of memory beside another")
            return launched

    def forward(_: list[str]) -> None:
        nonlocal collected
        collected += 1

    collected = 0
    texts = ["word " * 450 + "first", "word " * 400 + "second", *sentences(20)]
    classifier = Classifier(Crowded(token_budget=500, device="cuda", on_forward=forward))
    check(classifier.classify(works(*texts)), texts)


def test_a_row_longer_than_the_memory_fails_and_the_others_dont() -> None:
    """There is nothing left to halve: `OutOfMemory`, in the words a producer can act on."""
    texts = [*sentences(20), "word " * 400]
    result = Classifier(FakeEngine(max_area=200)).classify(works(*texts))
    [error] = check_around(result, texts, [20])
    assert isinstance(error, OutOfMemory)


@pytest.mark.parametrize("where", ["encode", "forward"])
def test_the_callers_own_exceptions_pass_through(where: str) -> None:
    """A time limit hits the whole dispatch; it is no text's failure."""

    class Limited(FakeEngine):
        def encode(
            self, items: Sequence[TextItem], on_long: Sequence[OnLong]
        ) -> list[Encoded | JobError]:
            if where == "encode":
                raise TimeLimit
            return super().encode(items, on_long)

    def forward(_: list[str]) -> None:
        raise TimeLimit

    classifier = Classifier(
        Limited(on_forward=forward), passes=lambda exc: isinstance(exc, TimeLimit)
    )
    with pytest.raises(TimeLimit):
        classifier.classify(works("a", "b"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, DeviceLost])
def test_what_ends_the_process_passes_through(error: type[BaseException]) -> None:
    """Halving a batch on a lost device would fail every innocent job in it."""

    def forward(_: list[str]) -> None:
        raise error

    with pytest.raises(error):
        Classifier(FakeEngine(on_forward=forward)).classify(works("a", "b"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpu_has_the_whole_dispatch_before_the_first_answer_is_read(device: str) -> None:
    """No micro-batch is waited for while another could be launched; a CPU has one at a time."""
    engine = FakeEngine(token_budget=40, device=device)
    collected = 0
    in_flight = []

    def forward(_: list[str]) -> None:
        nonlocal collected
        in_flight.append(len(engine.launched) - collected)
        collected += 1

    engine._on_forward = forward
    texts = sentences(50)
    check(Classifier(engine).classify(works(*texts)), texts)
    count = len(in_flight)
    assert count > 2
    assert in_flight == (list(range(count, 0, -1)) if device == "cuda" else [1] * count)


def test_times_come_from_the_clock_and_overlapping_passes_arent_counted_twice() -> None:
    """Each pass counts from its launch or from the end of the one before it, what came later."""
    ticks = iter(range(1000))
    engine = FakeEngine(token_budget=4, device="cuda")
    classifier = Classifier(engine, clock=lambda: float(next(ticks)))
    batches = classifier.classify(works("aa", "bb", "cc")).micro_batches
    assert sum(batch.forward_ms for batch in batches) <= (next(ticks) - 1) * 1e3
    assert all(batch.forward_ms > 0 for batch in batches)


def test_the_time_of_a_pass_has_no_tokenizing_in_it() -> None:
    """Where the device tells what it took: 10 ms a token, and each chunk is encoded for 50 s."""
    now_s = 0.0

    class Answer:
        def __init__(self, launched: Launched, cost_s: float) -> None:
            self.took_s: float | None = None
            self._launched, self._cost_s = launched, cost_s

        def logits(self) -> list[list[float]]:
            self.took_s = self._cost_s
            return self._launched.logits()

    class Slow(FakeEngine):
        def encode(
            self, items: Sequence[TextItem], on_long: Sequence[OnLong]
        ) -> list[Encoded | JobError]:
            nonlocal now_s
            now_s += 50.0
            encoded_at_s.append(now_s)
            return super().encode(items, on_long)

        def launch(self, rows: Sequence[Row]) -> Any:
            area = len(rows) * max(row.length for row in rows)
            return Answer(super().launch(rows), 0.01 * area)

    encoded_at_s: list[float] = []
    texts = sentences(100)
    engine = Slow(token_budget=75, device="cuda")
    result = Classifier(engine, clock=lambda: now_s).classify(works(*texts))
    check(result, texts)
    assert len(encoded_at_s) > 2
    for batch in result.micro_batches:
        assert batch.forward_ms == pytest.approx(10 * batch.rows * batch.longest)


def test_a_multi_line_error_reaches_the_producer_as_one_sentence() -> None:
    """Torch appends C++ stack traces; the first line has the cause."""
    result = Classifier(FakeEngine()).classify(works("raise:index 7 is out of range\nC++ frame #0"))
    [error] = result.outcomes
    assert isinstance(error, InferenceError)
    assert error.cause == "RuntimeError: index 7 is out of range"
