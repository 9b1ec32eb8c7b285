"""Every dial of the worker, each with its unit, default and environment name (``GOLEM_*``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from golem_tasks.settings import ClientSettings
from worker.pace import LEAST_ROWS, MOST_ROWS

__all__ = ["EMBEDDED_MODEL", "WorkerSettings"]

EMBEDDED_MODEL = "golem-mini"


class WorkerSettings(ClientSettings):
    """What a worker needs to know, beside what it shares with producers."""

    model: str = Field(
        EMBEDDED_MODEL,
        min_length=1,
        description="Hub id, folder, or 'golem-mini', the model that ships with the worker.",
    )
    model_revision: str | None = Field(
        None, description="Branch, tag or commit of a hub model; pin one in production."
    )
    trust_remote_code: bool = Field(
        False, description="Whether code that comes with a hub model may run here."
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, cuda, cuda:N or mps; auto takes a GPU where there is one.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="auto: half precision on CUDA, bfloat16 on a CPU that has it, else float32; "
        "int8: on a CPU, other answers for a few texts in a hundred.",
    )
    compile: bool = Field(
        False,
        description="Whether to run the model through torch.compile: a minute slower to start, and "
        "faster on some machines; needs a C++ compiler.",
    )
    calibration: str | None = Field(
        None,
        min_length=1,
        description="File of `golem calibrate`; unset: the one in the model's folder, if any.",
    )
    processes: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Model processes; unset: one per GPU; on a CPU one per core, 4 at most, and "
        "one per 1.5 GiB of memory and a copy of the weights.",
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads per process; unset: cores / processes."
    )
    max_rows: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        "auto",
        description="Most texts in one dispatch to a model process; auto: 256, and up to 1,024 "
        "where they take it a quarter of a second or less.",
    )
    max_dispatch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Most estimated tokens in one dispatch to a model process; auto: 32,768, and "
        "on a GPU four times its token budget if that is more.",
    )
    token_budget: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Padded area of a micro-batch, longest x rows, in tokens; auto: measured at "
        "the first start on a machine, in some seconds.",
    )
    state_dir: str | None = Field(
        None,
        min_length=1,
        description="Folder for what is learned here, and for weights that processes share; unset: "
        "golem in the user's cache.",
    )
    linger_ms: float = Field(
        0.0, ge=0, le=60_000, description="Milliseconds a job may wait for company while idle."
    )
    max_age_ms: float = Field(
        1_000.0, gt=0, description="Milliseconds after which a waiting job goes before all others."
    )
    transport: Literal["batched", "stock"] = Field(
        "batched", description="How messages are fetched: many at once, or as stock Celery does."
    )
    engine: str = Field(
        "worker.engine:load",
        pattern=r"^[\w.]+:\w+$",
        description="Loader of the engine, module:function; tests and benchmarks bring their own.",
    )
    load_timeout_s: float = Field(
        900.0, gt=0, description="Seconds a model process may take to load and warm up."
    )
    job_timeout_s: Annotated[float, BeforeValidator(lambda value: value or 0.0)] = Field(
        600.0,  # a BERT-base on one old core takes a third of it for 64 texts of 512 tokens
        ge=0,
        le=86_400,
        description="Seconds the model may take for a dispatch, once more for each further 32,768 "
        "tokens it may have, where no time limit is set otherwise; 0: for ever.",
    )
    grace_s: float = Field(
        30.0,
        gt=0,
        description="Seconds a shutdown may take; batches may run for all of them but the last 5 "
        "(half of it if it is short).",
    )
    max_deliveries: int = Field(
        5, ge=1, description="Deliveries after which a job that was never settled is PoisonJob."
    )
    max_dead_letters: int = Field(
        1_000,
        ge=0,
        le=100_000,
        description="Jobs kept, with their texts, that failed as PoisonJob (golem dead); 0: none.",
    )
    lease_s: float = Field(
        30.0,
        ge=5,
        le=3600,
        description="Seconds a job stays with a worker that died; a living one keeps renewing.",
    )
    visibility_timeout_s: int = Field(
        3600,
        ge=10,
        description="The same for workers that don't renew: stock Celery's, GOLEM_TRANSPORT=stock.",
    )

    @property
    def conditions(self) -> dict[str, int]:
        """What a token budget that was learned holds for, beside the model and the device.

        A compiled model has another speed, and takes other room.
        """
        return {"compile": 1} if self.compile else {}

    @property
    def rows(self) -> int:
        """Texts of a full dispatch, as far as it is known before the first."""
        return LEAST_ROWS if self.max_rows == "auto" else self.max_rows

    @property
    def most_rows(self) -> int:
        """Texts of a full dispatch once it is known how fast a process is; of a micro-batch."""
        return MOST_ROWS if self.max_rows == "auto" else self.max_rows
