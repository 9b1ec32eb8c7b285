"""A web application in front of the queue: it accepts texts at once and answers when a worker has.

::

    POST /classify     one text   -> 202, its id, and where to poll
    GET  /jobs/{id}    poll       -> done or not; the prediction, or why there is none
    POST /bulk         many texts -> 202 and their ids, in order
    POST /stream       many ids   -> server-sent events, an answer each, as they come

An id is all a client needs to hold: any process of the application, also after a restart, polls or
streams it for as long as the answer is kept (``GOLEM_RESULT_EXPIRES_S``). So a client whose stream
breaks asks again for what is missing. Whoever has an id can read its answer: ids are random, and an
application with users checks whose they are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Self, TypedDict
from uuid import UUID

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from golem_tasks import (
    AsyncGolem,
    AsyncJob,
    BrokerUnavailable,
    InvalidJob,
    JobError,
    Prediction,
    Predictions,
    QueueFull,
    ResultTimeout,
)

logger = logging.getLogger("uvicorn.error")  # where uvicorn shows what is wrong

MOST_TEXTS = 1_000
RETRY_AFTER_S = 5
MOST_RETRY_AFTER_S = 60
STREAM_S = 60
"""A stream ends after so long, whatever is missing: its client opens the next."""


class Text(BaseModel):
    """What ``POST /classify`` takes. The contract's own limits are checked at submit."""

    text: str
    text_pair: str | None = None


class Texts(BaseModel):
    """What ``POST /bulk`` takes."""

    texts: list[str] = Field(min_length=1, max_length=MOST_TEXTS)


class Ids(BaseModel):
    """What ``POST /bulk`` returns and ``POST /stream`` takes."""

    ids: list[UUID] = Field(min_length=1, max_length=MOST_TEXTS)


class Accepted(BaseModel):
    """What ``POST /classify`` returns; ``url`` is where to poll."""

    id: UUID
    url: str


class Problem(BaseModel):
    """Why a job has no prediction: a class of `golem_tasks.errors` and its sentence."""

    type: str
    message: str

    @classmethod
    def of(cls, error: JobError) -> Self:
        """Build it from what a job raised."""
        return cls(type=type(error).__name__, message=str(error))


class Status(BaseModel):
    """A job as it stands. An id nobody knows looks like one that waits: Redis can't tell."""

    id: str
    done: bool
    answer: Prediction | Predictions | None = None
    error: Problem | None = None


class State(TypedDict):
    """What requests find in ``request.state``."""

    golem: AsyncGolem


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
    """One client for all requests, closed when the application stops."""
    async with AsyncGolem() as golem:  # GOLEM_BROKER_URL and the other settings
        yield {"golem": golem}


def client(request: Request) -> AsyncGolem:
    """Return the application's client."""
    golem: AsyncGolem = request.state.golem
    return golem


Client = Annotated[AsyncGolem, Depends(client)]
app = FastAPI(title="Golem behind FastAPI", lifespan=lifespan)


@app.post("/classify", status_code=202)
async def classify(body: Text, golem: Client, request: Request, response: Response) -> Accepted:
    """Accept one text for the interactive lane."""
    job = await golem.submit(body.text, body.text_pair)
    url = str(request.app.url_path_for("poll", job_id=job.id))
    response.headers["Location"] = url
    return Accepted(id=UUID(job.id), url=url)


@app.get("/jobs/{job_id}")
async def poll(job_id: UUID, golem: Client) -> Status:
    """Tell how a job stands. A failed job is an answer too: 200, with its error."""
    return await status(golem.job(str(job_id)))


@app.post("/bulk", status_code=202)
async def bulk(body: Texts, golem: Client) -> Ids:
    """Accept many texts, a job each, for the bulk lane. One bad text, and none is sent."""
    jobs = await golem.submit_many(body.texts, bulk=True)
    return Ids(ids=[UUID(job.id) for job in jobs])


@app.post("/stream", response_class=EventSourceResponse)
async def stream(body: Ids, golem: Client) -> AsyncIterable[ServerSentEvent]:
    """Send an ``answer`` for each job as it ends, then ``end``; after a minute ``pause`` instead.

    What is answered already comes first. FastAPI sends a comment every 15 s, so that a proxy
    doesn't take the stream for dead, and stops the wait when the client has gone.
    """
    jobs = [golem.job(str(id_)) for id_ in body.ids]
    try:
        async with aclosing(golem.as_completed(jobs, timeout=STREAM_S)) as ended:
            async for job in ended:
                yield ServerSentEvent(event="answer", data=await status(job))
    except ResultTimeout:
        yield ServerSentEvent(event="pause")
    except BrokerUnavailable as error:
        logger.error("A stream broke off: %s", error)  # noqa: TRY400 - the sentence says it all
        yield ServerSentEvent(event="problem", data=AWAY)
    else:
        yield ServerSentEvent(event="end")


async def status(job: AsyncJob[Prediction | Predictions]) -> Status:
    """Ask how a job stands.

    Raises:
        BrokerUnavailable: the result backend can't be asked.
    """
    if not await job.done():
        return Status(id=job.id, done=False)
    try:
        return Status(id=job.id, done=True, answer=await job.result())
    except JobError as error:
        return Status(id=job.id, done=True, error=Problem.of(error))


# What goes wrong at submit. Golem's sentences about Redis name hosts and settings: they are for the
# log, and the client gets one of the application's own.

FULL = "Too many texts are waiting already; nothing was sent. Try again in {} s."
AWAY = f"The queue can't be reached at the moment. Try again in {RETRY_AFTER_S} s."


@app.exception_handler(InvalidJob)
async def invalid(_request: Request, error: InvalidJob) -> Response:
    """422: the client's own fault, field and reason named."""
    return refusal(422, error, str(error))


@app.exception_handler(QueueFull)
async def full(_request: Request, error: QueueFull) -> Response:
    """429: the backlog would exceed ``GOLEM_MAX_BACKLOG``; come back when it is worked off."""
    wait_s = RETRY_AFTER_S if error.wait_s is None else error.wait_s
    seconds = min(max(math.ceil(wait_s), 1), MOST_RETRY_AFTER_S)
    return refusal(429, error, FULL.format(seconds), {"Retry-After": str(seconds)})


@app.exception_handler(BrokerUnavailable)
async def away(_request: Request, error: BrokerUnavailable) -> Response:
    """503: Redis is away. After `SubmitIncomplete` some jobs run twice if sent again: harmless."""
    logger.error("%s", error)
    return refusal(503, error, AWAY, {"Retry-After": str(RETRY_AFTER_S)})


def refusal(
    code: int, error: Exception, sentence: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Answer in the shape of FastAPI's own errors, with the error's class beside it."""
    content: dict[str, Any] = {"detail": sentence, "type": type(error).__name__}
    return JSONResponse(content, code, headers)


# Last, since it takes every path that is left.
app.mount("/", StaticFiles(directory=Path(__file__).parent / "page", html=True))
