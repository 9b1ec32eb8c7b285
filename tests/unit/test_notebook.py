"""How a prediction looks in a notebook."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from golem_tasks import Prediction
from tests.support.answers import prediction


class Parsed(HTMLParser):
    """What a browser makes of it: the elements, their attributes, and the text of each cell."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element; a cell begins empty."""
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag in ("td", "caption"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        """Add to the cell we are in."""
        self.cells[-1] += data


def shown(scores: dict[str, float], model: str = "golem-mini") -> Parsed:
    """A prediction with these scores, as a notebook asks for it."""
    best = next(iter(scores))
    fields = prediction(best) | {"scores": scores, "score": scores[best]}
    fields["model"] = {"name": model, "revision": None, "dtype": "float32"}
    return Parsed(Prediction.model_validate(fields)._repr_html_())


def test_a_bar_stands_for_each_label() -> None:
    """Its width is the score; label, bar and score in each row, the answer in bold."""
    html = Prediction.model_validate(prediction("GOOD"))._repr_html_()
    assert "width:75.0%" in html
    assert "width:25.0%" in html
    assert html.count("font-weight:bold") == 1
    assert Parsed(html).cells == ["test", "GOOD", "", "75.0 %", "OTHER", "", "25.0 %"]


@given(st.dictionaries(st.text(min_size=1), st.floats(0, 1), min_size=1, max_size=5), st.text())
def test_whatever_a_label_is_it_stays_text(scores: dict[str, float], model: str) -> None:
    """Only our own elements and attributes; every label as it was given."""
    parsed = shown(scores, model)
    assert parsed.tags == [
        "table",
        "caption",
        "tbody",
        *["tr", "td", "td", "div", "td"] * len(scores),
    ]
    assert parsed.attributes == {"style"}
    assert parsed.cells[0] == model
    assert parsed.cells[1::3] == list(scores)


def test_markup_in_a_label_is_not_markup() -> None:
    """The example everybody thinks of."""
    hostile = "<script>alert(1)</script>\"'&amp;"
    assert shown({hostile: 1.0}).cells[1] == hostile


def test_a_raw_value_has_no_bar() -> None:
    """A regression head's score isn't a share of anything."""
    parsed = shown({"LABEL_0": -3.25})
    assert parsed.cells[1:] == ["LABEL_0", "", "-3.25"]
    assert "div" not in parsed.tags


def test_a_thousand_labels_are_cut_and_counted() -> None:
    """The best twenty."""
    parsed = shown({f"label {number}": 0.001 for number in range(1000)})
    assert parsed.cells[0] == "golem-mini, 980 labels more"
    assert parsed.tags.count("tr") == 20
