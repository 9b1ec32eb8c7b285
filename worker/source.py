"""What `GOLEM_MODEL` names: the model that ships with the worker, a folder, or a hub id.

Without torch, so that the parent, which never loads it, can ask as well.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golem_tasks.errors import ModelLoadError
from worker.settings import EMBEDDED_MODEL, WorkerSettings

__all__ = ["EMBEDDED_FOLDER", "Source", "find_source"]

EMBEDDED_FOLDER = Path(__file__).parent / "models" / "golem_mini"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from."""

    name: str
    """As answers and messages name it."""
    location: str
    """Folder, or hub id."""
    is_folder: bool
    revision: str | None
    trust_remote_code: bool

    @property
    def folder(self) -> Path | None:
        """Where its files are, if it is a folder."""
        return Path(self.location) if self.is_folder else None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of every ``from_pretrained``."""
        return {
            "local_files_only": self.is_folder,
            "revision": self.revision or "main",
            "trust_remote_code": self.trust_remote_code,
        }


def find_source(settings: WorkerSettings) -> Source:
    """Tell the embedded model, a folder and a hub id apart.

    Raises:
        ModelLoadError: the name can only be a folder, and there is none.
    """
    name = settings.model
    trust = settings.trust_remote_code
    # First, so that a folder of that name in the working directory can't take its place.
    folder = EMBEDDED_FOLDER if name == EMBEDDED_MODEL else Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            cause = "the folder has no config.json, so it isn't a model's"
            raise ModelLoadError.of(name, cause, "Name the folder save_pretrained() wrote.")
        return Source(name, str(folder), is_folder=True, revision=None, trust_remote_code=trust)
    if name == EMBEDDED_MODEL:
        cause = "its files aren't in the installed package"
        raise ModelLoadError.of(name, cause, "Install golem-tasks again from a complete wheel.")
    if difflib.get_close_matches(name.lower(), [EMBEDDED_MODEL], cutoff=0.8):
        cause = "there is no such folder, and no model of that name comes with Golem"
        raise ModelLoadError.of(name, cause, f"The one that does is {EMBEDDED_MODEL}.")
    if folder.is_file():
        cause = "it is a file"
        raise ModelLoadError.of(name, cause, "Name the folder it is in.")
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name:
        cause = f"there is no such folder (working directory: {Path.cwd()})"
        raise ModelLoadError.of(name, cause, "Set GOLEM_MODEL to a folder or a hub id.")
    revision = settings.model_revision
    return Source(name, name, is_folder=False, revision=revision, trust_remote_code=trust)
