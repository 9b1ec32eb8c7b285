import csv
import json
from pathlib import Path

import pytest

from golem_tasks.cli.calibrate import label_indexes, read_labelled
from golem_tasks.contract import Limits, Options, Prediction, TextItem
from golem_tasks.errors import ConfigurationError, GolemError
from golem_tasks.settings import load as load_settings
from tests.support.cli import golem
from tests.support.data import sst2_dev
from tests.support.models import build
from worker.calibration import Calibration
from worker.classifier import Classifier, Work
from worker.engine import load
from worker.settings import WorkerSettings


def answer(text: str, **given: object) -> Prediction:
    """One text's prediction by an engine with these settings."""
    asked = {"device": "cpu", "dtype": "float32", "threads": 1, "token_budget": 1024, **given}
    engine = load(load_settings(WorkerSettings, **asked), 0)
    [outcome] = Classifier(engine).classify([Work(TextItem(text), Options(), 0.0)]).outcomes
    assert not isinstance(outcome, GolemError)
    return Prediction.model_validate(outcome)


def test_calibrate_fits_judges_draws_and_the_engine_takes_the_file(tmp_path: Path) -> None:
    """golem-mini is too sure of itself: its error falls, labels stay, predictions say so."""
    pytest.importorskip("matplotlib")
    file, out, picture = (tmp_path / name for name in ("dev.csv", "cal.json", "diagram.png"))
    with file.open("w", newline="", encoding="utf-8") as written:
        writer = csv.writer(written)
        writer.writerow(["sentence", "label"])
        writer.writerows(sst2_dev()[:400])
    done = golem(
        "calibrate", "--file", file, "--column", "sentence", "--out", out, "--plot", picture,
        "--dtype", "float32", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["after"]["ece"] < told["before"]["ece"]
    assert told["after"]["nll"] < told["before"]["nll"]
    assert told["after"]["accuracy"] == told["before"]["accuracy"] > 0.8
    assert told["calibration"] == json.loads(out.read_text())
    assert (told["calibration"]["texts"], told["judged_on"], told["failed"]) == (200, 200, 0)
    assert picture.read_bytes().startswith(b"\x89PNG")
    plain, tempered = answer("I love this."), answer("I love this.", calibration=str(out))
    assert plain.model.temperature is None
    assert tempered.model.temperature == told["calibration"]["temperature"] > 1
    assert tempered.label == plain.label
    assert tempered.score < plain.score


def test_a_calibration_in_the_models_folder_is_found_and_checked(tmp_path: Path) -> None:
    """By its name; one of another model's labels is refused in one sentence."""
    folder = build(tmp_path / "model", labels=("A", "B"))
    file = folder / "golem_calibration.json"
    Calibration(2.0, ("A", "B"), 100).save(file)
    assert answer("the film", model=str(folder)).model.temperature == 2.0
    Calibration(2.0, ("A", "C"), 100).save(file)
    with pytest.raises(ConfigurationError, match=r"labels A, C.*golem calibrate"):
        answer("the film", model=str(folder))


def test_a_model_whose_labels_dont_exclude_each_other_takes_none(tmp_path: Path) -> None:
    """A temperature is for softmax."""
    folder = build(tmp_path / "model", problem_type="multi_label_classification")
    Calibration(2.0, ("NEGATIVE", "POSITIVE"), 100).save(folder / "golem_calibration.json")
    with pytest.raises(ConfigurationError, match="don't exclude each other"):
        answer("the film", model=str(folder))


@pytest.mark.parametrize("content", ["text,label\ngood,1\n", "text,label\ngood,meh\n"])
def test_what_cant_be_calibrated_with_is_refused_in_a_sentence(
    tmp_path: Path, content: str
) -> None:
    """Too few texts, or a label the model doesn't have."""
    file = tmp_path / "dev.csv"
    file.write_text(content)
    done = golem("calibrate", "--file", file, "--out", tmp_path / "cal.json")
    assert done.returncode == 2
    assert "too few" in done.stderr or "Label 'meh' isn't one of the model's" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "cal.json").exists()


def test_labels_are_names_in_any_case_or_indexes() -> None:
    """As people's files have them."""
    assert label_indexes(["1", "neg", "Pos", "POS"], ["NEG", "POS"]) == [1, 0, 1, 1]
    with pytest.raises(ConfigurationError, match="'2' isn't one of the model's"):
        label_indexes(["2"], ["NEG", "POS"])


def test_texts_and_labels_are_read_side_by_side(tmp_path: Path) -> None:
    """A label may be a JSON number; a text no worker takes is left out with its label."""
    file = tmp_path / "dev.jsonl"
    rows = [{"text": "good", "label": 1}, {"text": "", "label": 0}, {"text": "bad", "label": "NEG"}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    assert read_labelled(file, None, "label", Limits()) == (["good", "bad"], ["1", "NEG"])
