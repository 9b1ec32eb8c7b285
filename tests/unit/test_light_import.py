"""What an import costs: neither a producer nor a worker's parent loads the model's libraries."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "tokenizers", "numpy")


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after the statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import golem_tasks",
        "from golem_tasks import Golem, AsyncGolem, Job, AsyncJob, SubmitOptions",
        "import golem_tasks; golem_tasks.Golem('redis://127.0.0.1:1/0')",
    ],
)
def test_a_producer_loads_neither_the_models_libraries_nor_the_worker(statement: str) -> None:
    """Not at import, and not when it makes its client."""
    assert not loaded_by(statement) & {*HEAVY, "worker"}


def test_the_package_alone_does_not_load_celery() -> None:
    """Contract, settings and errors are for everybody; Celery comes with a client."""
    assert not loaded_by("import golem_tasks, golem_tasks.settings") & {"celery", "kombu", "redis"}


def test_a_workers_parent_process_does_not_load_torch() -> None:
    """The children hold the model; what the parent never loads it needn't keep in memory."""
    assert not loaded_by("import worker.celery") & set(HEAVY)


def test_every_public_name_can_be_had() -> None:
    """``__all__`` promises nothing that isn't there, lazily or not."""
    names = loaded_by(
        "import golem_tasks\nassert all(getattr(golem_tasks, n) for n in golem_tasks.__all__)"
    )
    assert "golem_tasks" in names
