"""One line of progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haqsearch.search.loop import Event

_PLAIN_SECONDS = 10.0  # between plain lines


class Progress:
    """Context manager that shows stages (``say``) and evaluations (``on_event``)."""

    def __init__(self, max_evaluations: int) -> None:
        self.max_evaluations = max_evaluations
        self.done_here, self.seconds = 0, 0.0
        self.last = -_PLAIN_SECONDS
        self.live: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        if sys.stdout.isatty():
            from rich.progress import BarColumn, SpinnerColumn, TextColumn
            from rich.progress import Progress as RichProgress

            self.live = RichProgress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, text: str) -> None:
        if self.live is not None:
            self.live.console.print(text, highlight=False)
        else:
            print(text, flush=True)

    def on_event(self, event: Event) -> None:
        if event.seconds < self.seconds:  # a second search has begun, with a pace of its own
            self.done_here = 0
        self.seconds = event.seconds
        self.done_here += 1
        rate = self.done_here / max(event.seconds, 1e-9)
        left = (event.max_evaluations - event.evaluations) / max(rate, 1e-9)
        best = "none inside the budget yet"
        if event.best is not None and event.best.evaluation.accuracy is not None:
            e = event.best.evaluation
            best = f"best {e.accuracy:.2%}, KL {e.kl:.4f}"
        if event.front is not None:
            best += f" | {len(event.front)} on the front, hypervolume {event.front.share:.4f}"
        others = f", {event.pruned} pruned" if event.pruned else ""
        others += f", {event.failed} failed" if event.failed else ""
        done = f"{event.evaluations}/{event.max_evaluations} evaluations{others}"
        line = f"{done} | {best} | {rate:.2f}/s | {left:.0f} s left"
        if self.live is not None:
            if self.task is None:
                self.task = self.live.add_task(line, total=self.max_evaluations)
            self.live.update(self.task, description=line, completed=event.evaluations, total=event.max_evaluations)
        elif time.monotonic() - self.last >= _PLAIN_SECONDS or event.evaluations == event.max_evaluations:
            self.last = time.monotonic()
            print(line, flush=True)
