"""The FastAPI example, started as its README says, and texts whose labels golem-mini is sure of."""

from pathlib import Path

from golem_tasks.embedded import free_port
from tests.support.markdown import commands
from tests.support.servers import ROOT, WebServer, reader_environment

README = ROOT / "examples" / "fastapi_app" / "README.md"
LOVE, WASTE = "I love this.", "What a waste of two hours!"
LABELS = {LOVE: "POSITIVE", WASTE: "NEGATIVE"}


def application(log: Path, **env: str) -> WebServer:
    """The application, by the README's command on a free port."""
    [command] = commands(README, "uvicorn")
    port = free_port()
    command[command.index("8000")] = str(port)
    return WebServer(command, README.parent, log, port, reader_environment(**env))
