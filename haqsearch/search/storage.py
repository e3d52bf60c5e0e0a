"""Where a search is remembered: an Optuna journal in the run folder, or a database by URL. Survives ``kill -9``."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from haqsearch.errors import SearchError
from haqsearch.files import remove_leftovers

JOURNAL = "study.journal"
LOCK = "run.lock"
_DIGEST = "recipe_digest"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the run folder (made if missing) for this process. SearchError if another process has it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise SearchError(
                f"{folder}: another process (pid {holder}) is searching here; "
                "wait for it, or choose another folder with --out"
            ) from None
        remove_leftovers(folder)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def open_study(
    where: Path | str,
    name: str,
    recipe_digest: str = "",
    directions: Sequence[Literal["minimize", "maximize"]] = ("maximize",),
) -> optuna.Study:
    """The study ``name`` in a folder or at a database URL, made if missing, to be continued by this process.

    ``where`` is a run folder, held by ``exclusive`` (what a killed process left in its journal is mended here), or a
    URL such as ``sqlite:///runs.db`` or ``postgresql://...``. ``directions`` are those of the numbers a trial is told
    (``Problem.directions``): the score is maximised, the metrics of a trade-off minimised. A study made with another
    ``recipe_digest`` raises SearchError, as does a journal damaged elsewhere than at its end.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not _is_url(where):
        folder = Path(where)
        folder.mkdir(parents=True, exist_ok=True)
        _mend(folder / JOURNAL)
    storage = _storage(where)
    if name in optuna.get_all_study_names(storage):  # asked first: create_study(load_if_exists=True) writes every time
        study = optuna.load_study(study_name=name, storage=storage)
    else:
        study = optuna.create_study(study_name=name, storage=storage, directions=[*directions])
    known = study.user_attrs.get(_DIGEST)
    if known is None:
        study.set_user_attr(_DIGEST, recipe_digest)
    elif known != recipe_digest:
        raise SearchError(
            f"study {name!r} in {where} was made with another recipe (digest {known}, this one is {recipe_digest}): "
            "search elsewhere with --out FOLDER, or delete it to start over"
        )
    return study


def study_in_memory(directions: Sequence[Literal["minimize", "maximize"]] = ("maximize",)) -> optuna.Study:
    """An empty study that is kept nowhere."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(directions=list(directions))


def load_study(where: Path | str, name: str) -> optuna.Study:
    """An existing study to read, even while another process continues it. SearchError if there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not _is_url(where) and not (Path(where) / JOURNAL).is_file():
        raise SearchError(f"{where}: no {JOURNAL} here; a run folder is what `haqsearch run` writes")
    try:
        return optuna.load_study(study_name=name, storage=_storage(where))
    except KeyError:
        raise SearchError(f"{where}: there is no study {name!r} in it") from None


def _is_url(where: Path | str) -> bool:
    return "://" in str(where)


def _storage(where: Path | str) -> BaseStorage:
    if _is_url(where):
        return RDBStorage(str(where))
    return JournalStorage(JournalFileBackend(str(Path(where) / JOURNAL)))


def _mend(journal: Path) -> None:
    """Cut a line that a killed process did not finish, and take away the lock it held. SearchError on other damage."""
    for lock in journal.parent.glob(f"{journal.name}.lock*"):
        lock.unlink(missing_ok=True)
    if not journal.exists():
        return
    good = 0  # bytes up to the end of the last whole line
    damaged = 0  # number of the first line that is not JSON
    with journal.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if damaged:
                raise SearchError(f"{journal}:{damaged}: not a journal entry; restore a copy of the file, or delete it")
            if line.endswith(b"\n") and _is_json(line):
                good += len(line)
            else:
                damaged = number
    if damaged:
        os.truncate(journal, good)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
