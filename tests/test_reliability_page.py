"""docs/reliability.md: each promise names what shows it, and all that is named exists."""

import re
from fnmatch import filter as matching
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| **")]
FILES = {path.name: path.read_text() for path in TESTS.glob("*.py")}
FUNCTIONS = re.findall(r"^def (test_\w+)", "\n".join(FILES.values()), re.MULTILINE)


def test_every_promise_names_its_tests():
    assert len(ROWS) > 20
    for promise, shown_by, *_ in ROWS:
        named = re.findall(r"`([^`]+)`", shown_by)
        assert named, promise
        for name in named:
            assert name in FILES or matching(FUNCTIONS, name), f"{promise} is shown by {name}, which does not exist"


def test_every_hostile_file_is_on_the_page():
    for name, text in FILES.items():
        if name.startswith(("test_hostile_", "test_reliability_")) and name != Path(__file__).name:
            tests = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
            patterns = [p for row in ROWS for p in re.findall(r"`([^`]+)`", row[1])]
            assert name in patterns or any(matching(tests, pattern) for pattern in patterns), name
