"""``golem inspect``: the white box. The model runs in this process, without Redis."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from golem_tasks.cli.common import (
    Command,
    duration,
    json_option,
    label_style,
    one_line,
    print_json,
    require_model_side,
    stderr,
    stdout,
)
from golem_tasks.settings import load

if TYPE_CHECKING:
    from worker.settings import WorkerSettings
    from worker.whitebox import Tensor, WhiteBox

__all__ = ["command"]

_HEAD_TOKENS = 48
_TAIL_TOKENS = 8
_MOST_LABELS = 40
_BAR_CHARS = 20


@click.command(
    "inspect",
    cls=Command,
    examples="""
golem inspect "Not bad at all"
golem inspect --model ./my-model --dtype float32 "Not bad at all"
golem inspect --json "Not bad at all" | jq .prediction.scores
""",
)
@click.argument("text")
@click.option("--model", metavar="MODEL", help="Hub id, folder or golem-mini. [GOLEM_MODEL]")
@click.option("--model-revision", metavar="REV", help="Branch, tag or commit of a hub model.")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps. [GOLEM_DEVICE]")
@click.option(
    "--dtype", metavar="DTYPE", help="auto, float32, bfloat16, float16 or int8. [GOLEM_DTYPE]"
)
@json_option("Print everything as one JSON object, every token included.")
def command(*, text: str, as_json: bool, **dials: str | None) -> None:
    """Look inside the model at one text, stage by stage.

    Tokens with their ids and mask, the tensors with shape and dtype, each part of the model,
    logits, probabilities, and the time of each stage after a warm-up. Needs no Redis; the answer
    is the one a worker gives with the same model, device and dtype.
    """
    require_model_side()
    from worker.settings import WorkerSettings  # noqa: PLC0415 - the worker's, only needed here

    settings = _as_in_a_worker(load(WorkerSettings, **dials))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with stderr().status(f"Loading {settings.model} ..."):
        from worker import whitebox  # noqa: PLC0415 - loads torch, which takes seconds

        box = whitebox.look(whitebox.open_model(settings), text, settings.limits)
    if as_json:
        print_json({**dataclasses.asdict(box), **_as_json(box)})
    else:
        _show(box, stdout())


def _as_in_a_worker(settings: WorkerSettings) -> WorkerSettings:
    """With the environment and the cores of one of the processes a worker would start."""
    from worker import machine  # noqa: PLC0415 - the worker's, only needed here
    from worker.processes import count  # noqa: PLC0415 - the worker's

    machine.set_environment()  # before torch is loaded
    threads = settings.threads or machine.cores_of(0, count(settings), machine.available_cores())
    return settings.model_copy(update={"processes": 1, "threads": threads})


def _as_json(box: WhiteBox) -> dict[str, Any]:
    """The fields that aren't JSON yet."""
    model = {**dataclasses.asdict(box.model), "activation": box.model.activation.value}
    return {"model": model, "prediction": box.prediction.model_dump()}


def _show(box: WhiteBox, console: Console) -> None:
    model = box.model
    about = (
        f"  {model.dtype} on {model.device}, {box.parameters / 1e6:,.1f} M parameters, "
        f"{len(model.labels)} labels, at most {model.max_tokens} tokens; "
        f"loaded in {duration(box.load_ms / 1000)}"
    )
    console.print(Text.assemble((model.name, "bold"), about))
    for table in (_text(box), _tokens(box), _inputs(box), _modules(box), _labels(box), _times(box)):
        console.print()
        console.print(table)
    best = box.labels[box.argmax]
    console.print()
    console.print(
        Text.assemble(
            "argmax ", (str(best.index), "bold"), " -> ",
            (best.label, f"bold {label_style(best.label)}"), f" ({best.score:.4f})",
        )
    )  # fmt: skip


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_edge=False
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _text(box: WhiteBox) -> Table:
    table = _table("1  text", "characters", "bytes", "tokens", "truncated")
    table.add_row(
        f"{len(box.text):,}",
        f"{len(box.text.encode()):,}",
        f"{box.tokens_in_text:,}",
        f"to {len(box.tokens):,}" if box.truncated else "no",
    )
    return table


def _tokens(box: WhiteBox) -> Table:
    with_types = any(token.type_id is not None for token in box.tokens)
    columns = ["position", "token", "id", "mask", *(["type"] if with_types else [])]
    table = _table(f"2  tokens  {box.encode_ms:.2f} ms", *columns, right=("position", "id", "mask"))
    for token in box.tokens:
        hidden = len(box.tokens) - _HEAD_TOKENS - _TAIL_TOKENS
        if hidden > 0 and _HEAD_TOKENS <= token.position < _HEAD_TOKENS + hidden:
            if token.position == _HEAD_TOKENS:
                table.add_row("...", f"{hidden} more; --json has all")
            continue
        shown = Text(one_line(token.token), style="dim" if token.special else "")
        types = (str(token.type_id),) if with_types else ()
        table.add_row(str(token.position), shown, str(token.id), str(token.mask), *types)
    return table


def _inputs(box: WhiteBox) -> Table:
    table = _table("3  input tensors (B, T)", "tensor", "shape", "dtype", "device")
    for tensor in box.inputs:
        table.add_row(tensor.name, _shape(tensor), tensor.dtype, tensor.device)
    return table


def _modules(box: WhiteBox) -> Table:
    table = _table(
        f"4  forward  {box.forward_ms:.2f} ms", "part", "class", "output", "dtype", "ms",
        right=("ms",),
    )  # fmt: skip
    first = box.modules[0].name if box.modules else ""
    base = first.partition(".")[0] + "."  # as in distilbert.transformer.layer.0
    for part in box.modules:
        output, name = part.output, part.name.removeprefix(base)
        table.add_row(name, part.kind, _shape(output), output.dtype, f"{part.ms:.2f}")
    table.add_row("logits", "", _shape(box.logits), box.logits.dtype, "")
    return table


def _labels(box: WhiteBox) -> Table:
    activation, temperature = box.model.activation.value, box.model.temperature
    tempered = "" if temperature is None else f", {activation} of logit / {temperature:.4f}"
    table = _table(
        f"5  labels  {box.decode_ms:.2f} ms{tempered}", "index", "label", "logit", activation, "",
        right=("index", "logit", activation),
    )  # fmt: skip
    ordered = sorted(box.labels, key=lambda each: each.score, reverse=True)
    for each in ordered[:_MOST_LABELS]:
        style = label_style(each.label)
        bar = "█" * round(_BAR_CHARS * min(1.0, max(0.0, each.score)))
        table.add_row(
            str(each.index), Text(one_line(each.label)), f"{each.logit:.4f}", f"{each.score:.4f}",
            Text(bar, style=style),
        )  # fmt: skip
    if (rest := len(ordered) - _MOST_LABELS) > 0:
        table.add_row("...", f"{rest} more; --json has all")
    return table


def _times(box: WhiteBox) -> Table:
    total_ms = box.encode_ms + box.forward_ms + box.decode_ms
    table = _table("6  time", "stage", "ms", "share", right=("ms", "share"))
    stages = {"encode": box.encode_ms, "forward": box.forward_ms, "decode": box.decode_ms}
    for name, ms in stages.items():
        table.add_row(name, f"{ms:.2f}", f"{100 * ms / total_ms:.0f} %")
    table.add_row("total", f"{total_ms:.2f}", "")
    return table


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join(map(str, tensor.shape)) + ")"
