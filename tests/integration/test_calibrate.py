import csv
import json
import sys
from pathlib import Path

import pytest
import torch

from golem_tasks.cli import main
from golem_tasks.cli.calibrate import label_indexes, read_labelled
from golem_tasks.contract import Limits, Options, Prediction, TextItem
from golem_tasks.errors import ConfigurationError, GolemError
from golem_tasks.settings import load as load_settings
from tests.support.cli import golem
from tests.support.data import sst2_dev
from tests.support.models import build, texts
from worker import device
from worker.calibration import Calibration
from worker.classifier import Classifier, Work
from worker.engine import build as build_engine
from worker.engine import load
from worker.settings import WorkerSettings
from worker.source import EMBEDDED_FOLDER

PLAIN = {"device": "cpu", "dtype": "float32", "threads": 1, "token_budget": 1024}


def labelled(file: Path, folder: Path, *, right: bool = True, count: int = 120) -> Path:
    """A file of texts with the labels that the model in the folder gives them, or the others."""
    written = texts(count, longest=12, seed=1)
    engine = build_engine(load_settings(WorkerSettings, model=str(folder), **PLAIN), 0)
    works = [Work(TextItem(text), Options(top_k=0), 0.0) for text in written]
    given = []
    for outcome in Classifier(engine).classify(works).outcomes:
        assert not isinstance(outcome, GolemError)
        index = engine.info.labels.index(outcome["label"])
        given.append(index if right else (index + 1) % len(engine.info.labels))
    rows = [json.dumps({"text": t, "label": float(i)}) for t, i in zip(written, given, strict=True)]
    file.write_text("\n".join(rows))
    return file


def answer(text: str, **given: object) -> Prediction:
    """One text's prediction by an engine with these settings."""
    asked = {**PLAIN, **given}
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
    assert told["file"] == str(out)
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


HEADS = [
    ("multi_label_classification", ("A", "B"), "has labels that don't exclude each other"),
    (None, ("toxic",), "has one label, so there are no others"),
    ("regression", ("stars",), "is a regression, which answers values"),
    ("regression", ("x", "y"), "is a regression, which answers values"),
]


@pytest.mark.parametrize(("problem_type", "labels", "reason"), HEADS)
def test_a_model_that_isnt_of_one_label_among_several_takes_none(
    tmp_path: Path, problem_type: str | None, labels: tuple[str, ...], reason: str
) -> None:
    """A temperature is for softmax; the refusal says what this model is instead."""
    folder = build(tmp_path / "model", labels=labels, problem_type=problem_type)
    Calibration(2.0, labels, 100).save(folder / "golem_calibration.json")
    with pytest.raises(ConfigurationError, match=f"{reason}.*; remove it, or unset GOLEM_CALIB"):
        answer("the film", model=str(folder))


@pytest.mark.usefixtures("torch_as_before")
@pytest.mark.parametrize(("problem_type", "labels", "reason"), HEADS)
def test_calibrating_such_a_model_is_refused_for_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
    problem_type: str | None, labels: tuple[str, ...], reason: str,
) -> None:  # fmt: skip
    """And not for labels in the file that mean something else to such a model."""
    folder = build(tmp_path / "model", labels=labels, problem_type=problem_type)
    file = tmp_path / "dev.csv"
    file.write_text("text,label\ngood,1\nbad,4.5\n")
    assert main(["calibrate", "--file", str(file), "--model", str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"can't be calibrated by a temperature: it {reason}" in said.replace("\n", " ")
    assert not (folder / "golem_calibration.json").exists()


@pytest.mark.usefixtures("torch_as_before")
def test_an_old_calibration_of_other_labels_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the refusal to load it tells: in the model's folder, or where GOLEM_CALIBRATION points."""
    folder = build(tmp_path / "model", labels=("A", "B"))
    file, stale = labelled(tmp_path / "dev.jsonl", folder), Calibration(2.0, ("A", "C"), 100)
    inside, named = folder / "golem_calibration.json", tmp_path / "named.json"
    stale.save(inside)
    command = ["calibrate", "--file", str(file), "--model", str(folder), "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == str(inside)
    assert told["calibration"] == json.loads(inside.read_text())
    assert told["calibration"]["labels"] == ["A", "B"]
    assert answer("the film", model=str(folder)).model.temperature is not None
    stale.save(inside)
    monkeypatch.setenv("GOLEM_CALIBRATION", str(named))  # which isn't there yet
    assert main([*command, "--out", str(named)]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(named)
    assert answer("the film", model=str(folder)).model.temperature is not None


@pytest.mark.usefixtures("torch_as_before")
def test_calibrating_has_all_cores_however_many_processes_a_worker_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those would share them; nobody else is here."""
    folder = build(tmp_path / "model", labels=("A", "B"))
    file = labelled(tmp_path / "dev.jsonl", folder)
    monkeypatch.setattr(device, "available_cores", lambda: 3)
    monkeypatch.setenv("GOLEM_PROCESSES", "3")
    assert main(["calibrate", "--file", str(file), "--model", str(folder), "--json"]) == 0
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("torch_as_before")
@pytest.mark.parametrize(
    ("right", "remark"), [(True, "right about every text"), (False, "50 is the highest temp")]
)
def test_a_fit_without_a_best_temperature_is_remarked_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], right: bool, remark: str
) -> None:
    """Labels that are all the model's own, or none. Where the calibration lies is told as well."""
    folder = build(tmp_path / "model", labels=("A", "B"))
    file = labelled(tmp_path / "dev.jsonl", folder, right=right)
    assert main(["calibrate", "--file", str(file), "--model", str(folder)]) == 0
    printed = capsys.readouterr()
    assert remark in printed.err
    assert "golem_calibration.json" in printed.out.replace("\n", "")


@pytest.mark.usefixtures("torch_as_before")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "golem-mini lies in the installed package"),
        (["--model", str(EMBEDDED_FOLDER)], "lies in the installed package"),
        (["--model", "some/hub-model"], "some/hub-model is a hub model, without a folder"),
        (["--out", "missing/c.json"], "there is no folder missing; make it"),
        (["--out", "c.json", "--plot", "missing/c.png"], "there is no folder missing; make it"),
        (["--out", "c.json", "--plot", "c.csv"], "its ending isn't one of a picture's"),
        (["--out", "c.json", "--plot", "folder.png"], "folder.png can't be written: it is a fold"),
    ],
)
def test_a_place_that_cant_be_is_told_before_anything_is_classified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    """Its two texts, too few to calibrate with, aren't even counted; nothing is written."""
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dev.csv").write_text("text,label\ngood,1\nbad,0\n")
    assert main(["calibrate", "--file", "dev.csv", *arguments]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not (EMBEDDED_FOLDER / "golem_calibration.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"folder.png", "dev.csv"}


@pytest.mark.usefixtures("torch_as_before")
def test_a_picture_without_matplotlib_is_told_before_anything_is_classified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it weren't installed
    file = tmp_path / "dev.csv"
    file.write_text("text,label\ngood,1\n")
    places = ["--out", str(tmp_path / "c.json"), "--plot", str(tmp_path / "c.png")]
    assert main(["calibrate", "--file", str(file), *places]) == 2
    assert "pip install 'golem-tasks[bench]'" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()


@pytest.mark.usefixtures("torch_as_before")
@pytest.mark.parametrize(
    ("label", "said"),
    [("1", "too few to calibrate with"), ("meh", "Label 'meh' isn't one of the model's")],
)
def test_what_cant_be_calibrated_with_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], label: str, said: str
) -> None:
    """Too few texts, or a label the model doesn't have."""
    file, out = tmp_path / "dev.csv", tmp_path / "cal.json"
    file.write_text(f"text,label\ngood,{label}\n")
    assert main(["calibrate", "--file", str(file), "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed
    assert not out.exists()


def test_labels_are_names_in_any_case_or_indexes() -> None:
    """As people's files have them; a column of floats, as Parquet's often is, counts as well."""
    assert label_indexes(["1", "neg", "Pos", "POS"], ["NEG", "POS"]) == [1, 0, 1, 1]
    assert label_indexes(["1.0", "0.0", "0."], ["NEG", "POS"]) == [1, 0, 0]
    assert label_indexes(["2.0", "1"], ["1", "2"]) == [1, 0]  # names go before indexes
    for unknown in ("2", "2.0", "0.5", "1.01", "NaN", ""):
        with pytest.raises(ConfigurationError, match=f"'{unknown}' isn't one of the model's"):
            label_indexes([unknown], ["NEG", "POS"])


def test_texts_and_labels_are_read_side_by_side(tmp_path: Path) -> None:
    """A label may be a JSON number; a text no worker takes is left out with its label."""
    file = tmp_path / "dev.jsonl"
    rows = [{"text": "good", "label": 1}, {"text": "", "label": 0}, {"text": "bad", "label": "NEG"}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    assert read_labelled(file, None, "label", Limits()) == (["good", "bad"], ["1", "NEG"])
