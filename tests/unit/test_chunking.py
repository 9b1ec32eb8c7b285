"""A dispatch in chunks: what comes first, and that answers don't depend on it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.workloads import texts_made_up, workload
from golem_tasks.contract import OnLong, Options, TextItem
from golem_tasks.errors import JobError
from tests.support.fake_engine import SPECIAL_TOKENS, FakeEngine
from worker.chunking import MICRO_BATCHES, Chunker, chunk_count, cut
from worker.classifier import Classifier, Work
from worker.decoding import Decoder
from worker.interfaces import DeviceLost, Encoded, Row
from worker.packing import overhead_of, pack

SHARES = st.lists(st.floats(0.001, 3), max_size=60)


class Recorder(FakeEngine):
    """A GPU's engine that notes what is asked of it, and with which texts."""

    def __init__(self, **given: Any) -> None:
        super().__init__(
            device="cuda", on_forward=lambda texts: self.events.append(("logits", texts)), **given
        )
        self.events: list[tuple[str, list[str]]] = []

    def encode(
        self, items: Sequence[TextItem], on_long: Sequence[OnLong]
    ) -> list[Encoded | JobError]:
        """Note it and do it."""
        self.events.append(("encode", [item.text for item in items]))
        return super().encode(items, on_long)

    def launch(self, rows: Sequence[Row]) -> Any:
        """Note it and do it."""
        self.events.append(("launch", [self._text(row) for row in rows]))
        return super().launch(rows)

    def of(self, kind: str) -> list[list[str]]:
        """The texts of every call of this kind, in the order of the calls."""
        return [texts for event, texts in self.events if event == kind]


def works(texts: Sequence[str], on_long: OnLong = "truncate") -> list[Work]:
    """Works of these texts."""
    return [Work(TextItem(text), Options(on_long=on_long), 0.0) for text in texts]


def texts_of(*words: int) -> list[str]:
    """Different texts of so many words."""
    return [f"{number} " + "word " * (count - 2) + "end" for number, count in enumerate(words)]


def outcomes(device: str, some: Sequence[Work], **given: Any) -> list[Any]:
    """What a classifier without reserve makes of works, less the time it took."""
    engine = FakeEngine(device=device, **given)
    result = Classifier(engine, passes=lambda _: False).classify(some)
    return [
        repr(outcome)
        if isinstance(outcome, JobError)
        else {name: value for name, value in outcome.items() if name != "timing"}
        for outcome in result.outcomes
    ]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recorder], None]:
    """Notes among an engine's events when an answer is decoded, and how long its text was."""

    def watch(engine: Recorder) -> None:
        decode = Decoder.decode

        def noting(self: Decoder, rows: Any, encoded: Encoded, *rest: Any) -> Any:
            engine.events.append(("decode", [engine._text(row) for row in encoded.rows]))
            return decode(self, rows, encoded, *rest)

        monkeypatch.setattr(Decoder, "decode", noting)

    return watch


def test_a_gpu_computes_while_the_next_chunk_is_tokenized_and_the_last_is_decoded(
    decoded: Callable[[Recorder], None],
) -> None:
    """Chunk 2 is encoded after chunk 1's launch; no answer is awaited before all are launched.

    And the texts of the first micro-batch are decoded before the second one's answer is awaited.
    """
    engine = Recorder(token_budget=60)
    decoded(engine)
    Classifier(engine).classify(works(texts_of(*range(5, 30), *range(5, 30))))
    kinds = [kind for kind, _ in engine.events]
    chunks = engine.of("encode")
    assert len(chunks) > 2
    longest_first = [max(map(len, texts)) for texts in chunks]
    assert longest_first == sorted(longest_first, reverse=True)
    starts = [n for n, kind in enumerate(kinds) if kind == "encode"]
    for start, end in zip(starts, [*starts[1:], kinds.index("logits")], strict=True):
        assert set(kinds[start + 1 : end]) == {"launch"}
    answers = [n for n, kind in enumerate(kinds) if kind == "logits"]
    for start, end in zip(answers, [*answers[1:], len(kinds)], strict=True):
        texts = engine.events[start][1]
        assert engine.events[start + 1 : end] == [("decode", [text]) for text in texts]


def test_a_text_in_windows_is_decoded_with_its_last_window(
    decoded: Callable[[Recorder], None],
) -> None:
    """Not with its first, which a micro-batch before may have had."""
    engine = Recorder(token_budget=600)
    decoded(engine)
    texts = ["long " * 1100 + "end", *texts_of(*[400] * 4)]
    Classifier(engine).classify(works(texts, on_long="window"))
    [at] = [n for n, (kind, rows) in enumerate(engine.events) if kind == "decode" and rows[2:]]
    before = [rows for kind, rows in engine.events[:at] if kind == "logits"]
    assert sum("long" in text for rows in before for text in rows) == 3


def test_a_cpu_tokenizes_a_dispatch_in_one_call() -> None:
    """It computes during the launch, so there is nothing to overlap with."""
    engine = Recorder(token_budget=60)
    engine.info = FakeEngine().info
    texts = texts_of(*range(5, 30))
    Classifier(engine).classify(works(texts))
    assert engine.of("encode") == [texts]


@given(
    st.lists(
        st.sampled_from(
            ["raise:x", "oom", "encode:x", "nan", "rows:-1", "spread", "crowd:3", "pack", "words"]
        )
        | st.integers(1, 700),
        max_size=40,
    ),
    st.sampled_from([64, 200, 2000]),
    st.sampled_from([None, 300]),
    st.sampled_from(["truncate", "error", "window"]),
)
def test_answers_are_the_same_as_without_chunks(
    kinds: list[str | int], budget: int, room: int | None, on_long: OnLong
) -> None:
    """Whatever trouble there is in one chunk or across them, and whatever the device has room for.

    A crowd of 3 befalls those who stand beside one another, which nobody is failed for.
    """
    texts = [
        f"{number}{' word' * kind}" if isinstance(kind, int) else kind
        for number, kind in enumerate(kinds)
    ]
    some = works(texts, on_long)
    whole = outcomes("cpu", some, token_budget=budget, max_rows=16, max_area=room)
    assert outcomes("cuda", some, token_budget=budget, max_rows=16, max_area=room) == whole


def test_out_of_memory_in_one_chunk_bounds_those_behind_it() -> None:
    """They are packed for the budget as it has become."""
    engine = Recorder(token_budget=400, max_area=150)
    classifier = Classifier(engine)
    texts = texts_of(*range(5, 60))
    result = classifier.classify(works(texts))
    assert all(isinstance(outcome, dict) for outcome in result.outcomes)
    last = engine.events.index(("encode", engine.of("encode")[-1]))
    launches = [rows for kind, rows in engine.events[last:] if kind == "launch"]
    assert len(engine.of("encode")) > 1
    assert all(
        len(rows) * max(len(text.split()) + SPECIAL_TOKENS for text in rows) <= 150
        for rows in launches
    )


def test_a_device_lost_in_the_first_chunk_ends_the_dispatch_in_the_second() -> None:
    """It passes through as without chunks."""
    engine = Recorder(token_budget=60)
    with pytest.raises(DeviceLost):
        Classifier(engine).classify(works([*texts_of(*range(5, 30)), "lost"]))


@given(st.integers(0, 64), st.floats(0, 0.999))
def test_chunks_hold_four_micro_batches_or_there_are_two(whole: int, more: float) -> None:
    """At least two micro-batches' worth in each, at least four as soon as there are eight."""
    worth = whole + more
    count = chunk_count(worth)
    assert count == 1 or worth / count >= (MICRO_BATCHES if count > 2 or worth >= 8 else 2)
    assert (count > 1) == (worth >= 4)


@given(SHARES, st.integers(1, 9))
def test_a_cut_keeps_everything_in_order(shares: list[float], count: int) -> None:
    """In at most so many runs, none of them empty, none larger than its part and one more."""
    order = list(range(len(shares)))[::-1]
    runs = cut(order, shares, count)
    assert [index for run in runs for index in run] == order
    assert len(runs) <= count
    assert all(runs)
    bound = sum(shares) / count + max(shares, default=0)
    assert all(sum(shares[i] for i in run) <= bound + 1e-6 for run in runs)


def test_the_length_of_a_token_is_learned_from_what_comes() -> None:
    """Where a token is one character, the next dispatch is cut into more chunks."""
    chunker = Chunker(max_tokens=512, max_rows=256)
    some = works(["字" * 100] * 64)
    before = chunker.chunks(some, 400)
    chunker.learn(some, [Encoded((Row([1] * 100),), 100, truncated=False)] * 63 + [None])
    after = chunker.chunks(some, 400)
    assert (len(before), len(after)) == (1, 4)
    assert sorted(index for chunk in after for index in chunk) == list(range(64))


def test_one_odd_text_or_dispatch_hardly_changes_what_was_learned() -> None:
    """A megabyte of spaces is two tokens, and the next dispatch is cut as the one before."""
    chunker = Chunker(max_tokens=512, max_rows=256)
    usual = works(["word " * 40] * 64)
    tokens = [Encoded((Row([1] * 40),), 40, truncated=False)] * 64
    chunker.learn(usual, tokens)
    before = len(chunker.chunks(usual, 300))
    blank = works([" " * 2**20])
    nothing = [Encoded((Row([1, 2]),), 2, truncated=False)]
    chunker.learn([*usual, *blank], [*tokens, *nothing])
    assert len(chunker.chunks(usual, 300)) == before == 2
    chunker.learn(blank, nothing)
    assert len(chunker.chunks(usual, 300)) > 1


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=8))
def test_a_token_is_believed_to_have_half_a_character_to_twelve(odd: list[tuple[int, int]]) -> None:
    """Whatever comes: there are no more chunks than that makes, and no fewer."""
    chunker = Chunker(max_tokens=10**6, max_rows=10**6)
    for chars, tokens in odd:
        chunker.learn(works(["x" * chars]), [Encoded((Row([1]),), tokens, truncated=False)])
    some = works(["x" * 1200] * 100)
    assert chunk_count(100 * 100 / 1000) <= len(chunker.chunks(some, 1000))
    assert len(chunker.chunks(some, 1000)) <= chunk_count(100 * 2400 / 1000)


@pytest.mark.parametrize("name", ["short", "mixed", "outlier"])
@pytest.mark.parametrize("budget", [4096, 16_384])
def test_chunks_cost_little_padding(name: str, budget: int) -> None:
    """At most 2.5 points more than one plan of all rows has, eight micro-batches' worth waiting."""
    texts = workload(name, texts_made_up(), 16_384)
    engine = Recorder(token_budget=budget, max_rows=1024)
    lengths = [min(512, len(text.split(" ")) + SPECIAL_TOKENS) for text in texts]
    count = next(n for n in range(len(texts)) if sum(lengths[:n]) >= 8 * budget)
    batches = Classifier(engine).classify(works(texts[:count])).micro_batches
    assert len(engine.of("encode")) == 2
    area = sum(batch.rows * batch.longest for batch in batches)
    plan = pack(lengths[:count], budget, 1024, overhead_of(budget, "cuda"))
    least = sum(max(lengths[i] for i in rows) * len(rows) for rows in plan)
    tokens = sum(lengths[:count])
    assert (1 - tokens / area) - (1 - tokens / least) <= 0.025
