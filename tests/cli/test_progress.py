"""The pace that is shown is that of the search that runs."""

from __future__ import annotations

from haqsearch.cli.progress import Progress
from haqsearch.search.loop import Event


def test_a_second_search_has_a_pace_of_its_own(capsys):
    with Progress(100) as progress:
        for number in range(1, 101):  # ten a second
            progress.on_event(Event(None, None, number, 0, 100, number / 10))  # type: ignore[arg-type]
        for number in range(1, 6):  # one in five seconds
            progress.on_event(Event(None, None, number, 0, 5, 5.0 * number))  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert "100/100 evaluations" in lines[-2] and "10.00/s" in lines[-2]
    assert "5/5 evaluations" in lines[-1] and "0.20/s" in lines[-1]
