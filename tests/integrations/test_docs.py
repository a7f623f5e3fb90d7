"""The blocks of docs/howto/libraries.md run as they stand, each section for itself behind the data that all have."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "howto" / "libraries.md").read_text()
PARTS = [part.partition("\n") for part in re.split(r"^#+ ", TEXT, flags=re.M)[1:]]
SECTIONS = {title: re.findall(r"```python\n(.*?)```", text, re.S) for title, _, text in PARTS}
(DATA,) = SECTIONS.pop("Under other libraries")


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_runs(title):
    names = {}
    try:
        exec("\n".join([DATA, *SECTIONS[title]]), names)
    except ImportError as error:
        pytest.skip(str(error))
    assert names["net"].num_params == 58
