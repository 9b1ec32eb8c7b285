"""Train golem-mini: `python tools/golem_mini/train.py --data DIR --out DIR --seed 0`."""

import argparse
import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import model_card
import sst2
import student
import teacher
import torch
from measure import Measured, measure
from transformers import DistilBertForSequenceClassification

log = logging.getLogger("golem_mini")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Options:
    """The command line."""

    data: Path
    out: Path
    work: Path
    seed: int


def options() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with sst2_glue/, or with its two files"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder the model is written to")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "golem_mini",
        help="folder the teacher is kept in, for the next run (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args()
    return Options(known.data, known.out, known.work, known.seed)


def save(model: DistilBertForSequenceClassification, tokenizer: Path, out: Path) -> None:
    """Write the model as float16, with the tokenizer's two files."""
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16)  # type: ignore[arg-type]  # transformers' decorator hides self
    model.save_pretrained(out)
    config_file = out / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    # float16 is for the disk. A CPU computes in it slowly, and transformers takes this field as
    # the type to compute in when the caller names none.
    config["dtype"] = "float32"
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in _TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, out / name)
    for file in out.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner only


def report(measured: Measured) -> None:
    """Log what was measured."""
    log.info(
        "dev accuracy %.4f (%d of %d) in float32, %d right in bfloat16, which agrees on %d; "
        "probabilities differ by at most %.4f",
        measured.accuracy,
        measured.correct_float32,
        measured.sentences,
        measured.correct_bfloat16,
        measured.agreeing,
        measured.largest_difference,
    )
    for example, positive in measured.plain:
        log.info("%-28s positive %.3f", example.text, positive)
    log.info("%d parameters, %d bytes", measured.parameters, measured.size_bytes)


def main() -> None:
    """Train teacher and student, save the student, measure what was saved, write its card."""
    chosen = options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # Optimiser state of words long unseen decays into denormal numbers, which are slow. Set before
    # torch starts its threads, because they inherit it.
    torch.set_flush_denormal(True)
    torch.manual_seed(chosen.seed)
    folder = sst2.find_folder(chosen.data)
    examples, dev = sst2.read(folder / "train.tsv"), sst2.read(folder / "dev.tsv")

    teacher_folder = chosen.work / f"teacher-seed{chosen.seed}"
    trained = teacher.load_or_train(examples, chosen.seed, teacher_folder)
    model, student_s = student.train(trained, examples, chosen.seed)
    log.info("teacher %.0f s, student %.0f s", trained.seconds, student_s)

    save(model, teacher_folder, chosen.out)
    measured = measure(chosen.out, dev)
    report(measured)
    card = model_card.render(
        measured,
        seed=chosen.seed,
        max_tokens=student.SCHEDULE.max_tokens,
        fragments=student.FRAGMENTS_PER_EPOCH,
        label_weight=student.LABEL_WEIGHT,
    )
    (chosen.out / "README.md").write_text(card, encoding="utf-8")
    if misses := measured.shortcomings():
        raise SystemExit("golem-mini is not good enough: " + "; ".join(misses))


if __name__ == "__main__":
    main()
