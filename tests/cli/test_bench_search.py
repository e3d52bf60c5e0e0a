"""haqsearch bench search: what a kill leaves is taken up, and the tables say what the searches found."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from haqsearch.cli.bench.cells import IMPROVED, REPORTED, Entrant, Row, read_rows, write_rows
from haqsearch.cli.bench.search_page import _verdict, series_of
from haqsearch.errors import DataError, RecipeError
from haqsearch.search.records import best_of, read_records
from haqsearch.search.storage import load_study

from .conftest import DIGITS, command
from .forks import Forked
from .test_kill import kill_when

EVALUATIONS = 7
AGENTS = ("random", "tpe(startup=3)")
ASKED = ["--evaluations", EVALUATIONS, "--at", "3,5", *(word for agent in AGENTS for word in ("--agent", agent))]


def bench(*more: object) -> list[str]:
    return [str(word) for word in ("bench", "search", "digits.toml", *ASKED, *more)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, and ``whole``: two seeds of two agents, searched without a break."""
    folder = tmp_path_factory.mktemp("contest")
    (folder / "digits.toml").write_text(DIGITS)
    result = command(*bench("--seeds", "2", "--out", "whole"), cwd=folder)
    assert result.code == 0, result.err
    return folder


def outcome(folder: Path) -> list[Row]:
    """Rows without what differs from machine to machine, and with the moment."""
    return [replace(row, thinking_s=0, scoring_s=0, commit="") for row in read_rows(folder / "digits.csv")]


def journals(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / "runs" / "digits").glob("*/study.journal"))


def evaluated(folder: Path) -> int:
    return sum((path / "study.journal").read_bytes().count(b'"evaluation"') for path in journals(folder))


def test_the_rows_say_what_the_studies_hold(base):
    rows = outcome(base / "whole")
    cells = {row.cell for row in rows}
    assert cells == {(agent, EVALUATIONS, seed) for agent in AGENTS for seed in (0, 1)}
    assert len(journals(base / "whole")) == len(cells)
    for agent, _, seed in cells:
        mine = [row for row in rows if row.cell == (agent, EVALUATIONS, seed)]
        records = read_records(
            load_study(base / "whole/runs/digits" / f"{Entrant.parse(agent).slug}-{EVALUATIONS}-{seed}", "search")
        )
        assert len(records) == EVALUATIONS
        for count in range(1, EVALUATIONS + 1):
            best = best_of(records[:count])
            last = [row for row in mine if row.event == IMPROVED and row.evaluation <= count][-1]
            assert (last.score, last.policy_digest) == (best.score, best.policy.digest)
        reported = [row for row in mine if row.event == REPORTED]
        assert [row.evaluation for row in reported] == [3, 5, EVALUATIONS]
        assert all(0.5 < row.report_accuracy <= 1 and row.policy.startswith("{") for row in reported)
    scored = (base / "whole" / "runs" / "scores.jsonl").read_text().splitlines()
    assert len(scored) == len({line.split(",")[0] for line in scored}), "a policy was scored twice"


def test_the_page_is_made_from_the_files_alone(base, call):
    page = (base / "whole" / "README.md").read_text()
    for row in outcome(base / "whole"):
        assert f"| `{row.agent}` | 2 |" in page
    (base / "whole" / "README.md").unlink()
    (base / "whole" / "digits.svg").unlink()
    assert call("bench", "search", "--page-only", "--out", "whole", cwd=base).code == 0
    assert (base / "whole" / "README.md").read_text() == page
    assert (base / "whole" / "digits.svg").is_file()


def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(base):
    chance = random.Random(3)
    folder = base / "killed"
    asked = bench("--seeds", "2", "--out", "killed")
    killed = sum(
        kill_when(asked, base, lambda count=count: evaluated(folder) >= count, chance.uniform(0, 0.3))
        for count in (chance.randint(1, 10), chance.randint(12, 24))
    )
    assert killed == 2, "it ended before it could be killed: the test says nothing"
    last = Forked(asked, base)
    assert last.wait() == 0, last.err()
    assert outcome(folder) == outcome(base / "whole")
    assert all(len(read_records(load_study(path, "search"))) == EVALUATIONS for path in journals(folder))


@pytest.mark.slow
def test_two_at_once_share_the_work(base):
    import subprocess

    from .conftest import ENVIRONMENT, HAQSEARCH

    asked = bench("--seeds", "2", "--out", "shared")
    started = [
        subprocess.Popen([*HAQSEARCH, *asked], cwd=base, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        for _ in "ab"
    ]
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert outcome(base / "shared") == outcome(base / "whole")
    studies = [read_records(load_study(path, "search")) for path in journals(base / "shared")]
    assert [len(records) for records in studies] == [EVALUATIONS] * 4
    assert any("another process's" in text for text in said) or all("seed" in text for text in said)


def test_other_seeds_and_agents_are_added_to_what_is_there(base, call):
    shutil.copytree(base / "whole", base / "added")
    before = outcome(base / "added")
    one = ["bench", "search", "digits.toml", "--evaluations", "4", "--at", "2", "--agent", "uniform", "--out", "added"]
    assert call(*one, "--seeds", "1", cwd=base).code == 0
    rows = outcome(base / "added")
    assert [row for row in rows if row.agent != "uniform"] == before
    assert {row.cell for row in rows} - {row.cell for row in before} == {("uniform", 4, 0)}
    assert call(*one, "--seeds", "2", cwd=base).code == 0
    more = outcome(base / "added")
    assert [row for row in more if row.cell != ("uniform", 4, 1)] == rows != more


def test_what_cannot_be_searched_is_refused_before_anything_is(base, call):
    for words, sentence in (
        (("--agent", "tpee"), "did you mean 'tpe'?"),
        (("--agent", "tpe(startups=3)"), "no option 'startups'; did you mean 'startup'?"),
        (("--agent", "tpe(startup"), "write ddpg, or ddpg(warmup=40, noise=0.3)"),
        (("--agent", "tpe", "--at", "x"), "give numbers of evaluations"),
        ((), "name recipes, and agents"),
    ):
        result = call("bench", "search", "digits.toml", *words, "--out", "refused", cwd=base)
        assert result.code == 2 and sentence in result.err, result.err
    assert not journals(base / "refused")


ROWS = st.builds(
    Row,
    agent=st.sampled_from(["random", 'a,b("c"=1)']),
    evaluations=st.just(30),
    seed=st.integers(0, 3),
    event=st.just(IMPROVED),
    evaluation=st.integers(1, 30),
    score=st.floats(-9, -0.1),
    search_accuracy=st.floats(0, 1),
    policy_digest=st.just("0" * 16),
    thinking_s=st.floats(0, 9),
    scoring_s=st.floats(0, 9),
    report_accuracy=st.none() | st.floats(0, 1),
    policy=st.sampled_from(["", '{"conv1":"w4a4"}']),
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROWS, max_size=12))
def test_rows_survive_the_file(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    path.write_text(write_rows(rows))
    assert sorted(read_rows(path), key=repr) == sorted(rows, key=repr)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="not written by haqsearch bench search"):
        read_rows(path)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.lists(st.floats(-9, -0.1), min_size=30, max_size=30), min_size=1, max_size=4),
    target=st.floats(-9, -0.1),
    count=st.integers(0, 30),
)
def test_series_know_the_best_so_far_and_when_a_score_is_reached(scores, target, count):
    rows = []
    for seed, values in enumerate(scores):
        for evaluation, score in enumerate(values, start=1):
            if score > max(values[: evaluation - 1], default=float("-inf")):
                rows.append(Row("a", 30, seed, IMPROVED, evaluation, score, 0.5, "0", 0.0, 0.0))
    random.Random(0).shuffle(rows)
    (series,) = series_of(rows)
    assert sorted(series.scores(count)) == sorted(max(v[:count], default=float("-inf")) for v in scores)
    first = sorted(next((i for i, s in enumerate(v, start=1) if s >= target), float("inf")) for v in scores)
    middle = (first[(len(first) - 1) // 2] + first[len(first) // 2]) / 2
    assert series.reaches(target) == middle


@given(st.text(max_size=30))
@example(":")
@example("ddpg:")
@example("my_agents:Mine")
def test_an_agent_as_text_is_read_or_refused(text):
    try:
        entrant = Entrant.parse(text)
    except RecipeError:
        return
    assert Entrant.parse(entrant.text) == entrant
    assert "/" not in entrant.slug and entrant.slug


@pytest.mark.parametrize(
    ("score", "accuracy", "said"),
    [
        (-4.0, 0.92, "(+1.00 points); none ahead of it in the objective."),
        (-6.0, 0.92, "ahead of it in the objective: `tpe`."),
        (-6.0, 0.90, "(-1.00 points); ahead of it in the objective: `tpe`."),
        (-4.0, 0.90, "none ahead of it in the objective: 4.0000 where `tpe` has 5.0000. The 10,000 report samples"),
    ],
)
def test_the_page_says_who_is_ahead_in_the_objective_and_who_on_the_report_samples(score, accuracy, said):
    def row(agent: str, evaluation: int, event: str, score: float, accuracy: float | None) -> Row:
        return Row(agent, 300, 0, event, evaluation, score, 0.9, "x", 0.0, 0.0, accuracy)

    rows = [row("funnel", 5, IMPROVED, score, None), row("funnel", 60, REPORTED, score, accuracy)]
    rows += [row("funnel", 300, REPORTED, score, accuracy)]
    rows += [row("tpe", 9, IMPROVED, -5.0, None), row("tpe", 300, REPORTED, -5.0, 0.91)]
    about = {"objective_sign": -1, "splits": {"report": 10_000}}
    (line,) = _verdict(series_of(rows), about, "funnel")
    assert said in line
    assert ("standard error of an accuracy on them: 0.29 points" in line) == (accuracy < 0.91 and score > -5)
