"""Categories from files, right and wrong."""

import subprocess
import sys

import pytest

from refine.errors import RefineError
from refine.structures import Categories

GOOD = {"id": 7, "name": "cat", "isthing": 1}


def test_things_first_each_by_id():
    entries = [
        {"id": 9, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
        {"id": 8, "name": "dog", "isthing": True},
        GOOD,
    ]
    categories = Categories.from_json(entries)
    assert [c.name for c in categories] == ["cat", "dog", "sky"]
    assert (categories.num_things, categories.num_stuff, categories.index(9)) == (2, 1, 2)
    assert categories.palette()[2].tolist() == [70, 130, 180]
    assert Categories.from_json(categories.to_json()) == categories


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "the list is empty"),
        ({"id": 7}, "no list of mappings"),
        ([7], "no list of mappings"),
        ([GOOD, GOOD], "id 7 is used twice"),
        ([GOOD, GOOD | {"id": 8}], "name 'cat' is used twice"),
        ([{"id": 7, "name": "cat"}], r"categories\[0\]\.isthing is None"),
        ([GOOD | {"id": "7"}], r"categories\[0\]\.id is '7'"),
        ([GOOD | {"color": [1, 2]}], r"categories\[0\]\.color is \[1, 2\]"),
        ([GOOD | {"color": "red"}], "color is 'red'"),
        ([GOOD | {"color": [1, 2, 300]}], "three numbers 0-255"),
    ],
)
def test_broken_lists_are_refused(entries, words):
    with pytest.raises(RefineError, match=words):
        Categories.from_json(entries, "file.json")


def test_files_are_evaluated_without_torch():
    code = "import sys, refine.evaluation.panoptic_files; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
