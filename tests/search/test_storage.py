from __future__ import annotations

import optuna
import pytest

from haqsearch.agents import build_agent
from haqsearch.errors import SearchError
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.records import read_records
from haqsearch.search.storage import JOURNAL, exclusive, load_study, open_study
from haqsearch.testing.toy import AdditiveLoss, toy_problem

PROBLEM = toy_problem()


def search(study, evaluations):
    pool = SerialPool(AdditiveLoss(PROBLEM.space.model))
    run_search(PROBLEM, build_agent("random", PROBLEM, 1), pool, study, evaluations)
    return [r.policy.digest for r in read_records(study)]


def places(tmp_path):
    return [tmp_path / "run", f"sqlite:///{tmp_path}/runs.db"]


def test_folders_and_databases_keep_the_same_study(tmp_path):
    kept = []
    for where in places(tmp_path):
        search(open_study(where, "s", "abc"), 4)
        kept.append(search(open_study(where, "s", "abc"), 7))
        assert [r.policy.digest for r in read_records(load_study(where, "s"))] == kept[-1]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 7


def test_another_recipe_is_refused_with_a_way_out(tmp_path):
    for where in places(tmp_path):
        open_study(where, "s", "abc")
        with pytest.raises(SearchError, match=r"another recipe \(digest abc, this one is xyz\).*--out"):
            open_study(where, "s", "xyz")


def test_what_is_not_there_cannot_be_read(tmp_path):
    with pytest.raises(SearchError, match=r"no study\.journal here"):
        load_study(tmp_path, "s")
    open_study(tmp_path, "s")
    with pytest.raises(SearchError, match="no study 'other'"):
        load_study(tmp_path, "other")


def test_any_torn_tail_is_cut_and_the_search_goes_on(tmp_path):
    """A kill while a line is written leaves any prefix of it; every one has to be survived."""
    expected = search(open_study(tmp_path / "whole", "s"), 5)
    torn = tmp_path / "torn"
    search(open_study(torn, "s"), 3)
    journal = torn / JOURNAL
    content = journal.read_bytes()
    last = content.splitlines(keepends=True)[-1]
    for cut in (1, len(last) // 2, len(last) - 1):
        journal.write_bytes(content[:-cut])
        study = open_study(torn, "s")
        assert journal.read_bytes() == content[: -len(last)]
        assert len(study.trials) == 3  # the last line told the third trial; it is running again
    assert search(study, 5) == expected


def test_damage_elsewhere_is_told_with_its_line(tmp_path):
    search(open_study(tmp_path, "s"), 3)
    journal = tmp_path / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[4] = b"\x00" * 20 + b"\n"
    journal.write_bytes(b"".join(lines))
    with pytest.raises(SearchError, match=r"study\.journal:5: not a journal entry"):
        open_study(tmp_path, "s")
    assert journal.read_bytes() == b"".join(lines)  # nothing was cut away


def test_the_lock_of_a_killed_process_is_removed(tmp_path):
    open_study(tmp_path, "s")
    journal = tmp_path / JOURNAL
    (tmp_path / f"{JOURNAL}.lock").symlink_to(journal)  # as optuna's JournalFileSymlinkLock leaves it
    (tmp_path / f"{JOURNAL}.lock1234.rename").symlink_to(journal)
    assert len(search(open_study(tmp_path, "s"), 2)) == 2  # would wait 30 s for the lock's grace period
    assert not list(tmp_path.glob("*.lock?*"))


def test_reading_mends_nothing(tmp_path):
    """A reader must not cut the line another process is just writing."""
    search(open_study(tmp_path, "s"), 3)
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 5, "wor')
    before = journal.read_bytes()
    assert len(read_records(load_study(tmp_path, "s"))) == 3
    assert journal.read_bytes() == before


def test_a_folder_is_held_by_one(tmp_path):
    with exclusive(tmp_path / "run"):
        with pytest.raises(SearchError, match="another process"), exclusive(tmp_path / "run"):
            pass
    with exclusive(tmp_path / "run"):
        pass


def test_a_study_is_an_ordinary_optuna_study(tmp_path):
    search(open_study(tmp_path, "s"), 4)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL)))
    study = optuna.load_study(study_name="s", storage=storage)
    assert study.direction.name == "MAXIMIZE"
    assert set(study.best_params) == set(PROBLEM.distributions)
