"""The README is a program too."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

README = Path(__file__).parents[2] / "haqsearch" / "quant" / "README.md"


class _Fenced(doctest.DocTestParser):
    """Markdown fences are no expected output: they become blank lines, so that line numbers stay true."""

    def parse(self, string, name="<string>"):
        return super().parse(re.sub(r"^```.*$", "", string, flags=re.MULTILINE), name)


def test_the_examples_of_the_readme_run():
    result = doctest.testfile(str(README), module_relative=False, parser=_Fenced())
    assert result.failed == 0
    assert result.attempted > 20
