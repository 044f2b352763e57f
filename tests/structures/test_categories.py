"""Tests of reading, comparing and indexing categories."""

import pytest

from refine.errors import RefineError
from refine.structures import Categories, Category

GOOD = {"id": 7, "name": "cat", "isthing": 1}


def test_things_come_first_and_ids_are_sorted():
    entries = [
        {"id": 9, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
        {"id": 8, "name": "dog", "isthing": True},
        GOOD,
    ]
    categories = Categories.from_json(entries)
    assert [c.name for c in categories] == ["cat", "dog", "sky"]
    assert (categories.num_things, categories.num_stuff, categories.index(9)) == (2, 1, 2)
    assert categories[2].color == (70, 130, 180)
    assert Categories.from_json(categories.to_json()) == categories


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "the list is empty"),
        ({"id": 7}, "is not a list"),
        ([7], r"categories\[0\]: id is None"),
        ([GOOD, GOOD], "id 7 is used twice"),
        ([GOOD, GOOD | {"id": 8}], "'cat' is also the name of id 7"),
        ([{"id": 7, "name": "cat"}], r"categories\[0\] \(id 7\): isthing is missing"),
        ([GOOD | {"id": "7"}], r"categories\[0\]: id is '7'"),
        ([GOOD | {"color": [1, 2]}], r"categories\[0\] \(id 7\): color is \[1, 2\]"),
        ([GOOD | {"color": "red"}], "color is 'red'"),
        ([GOOD | {"color": [1, 2, 300]}], r"expected \[R, G, B\] of 0-255"),
    ],
)
def test_invalid_lists_raise(entries, words):
    with pytest.raises(RefineError, match=words):
        Categories.from_json(entries, "file.json")


CAT, DOG = GOOD, {"id": 8, "name": "dog", "isthing": 1}


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ([DOG, CAT], None),
        ([CAT | {"supercategory": None}, DOG], None),
        ([CAT | {"supercategory": "animal", "color": [1, 2, 3]}, DOG], None),
        (
            [CAT | {"name": "dog"}, DOG | {"name": "cat"}],
            r"b: category 7 is 'dog' \(thing\), but 'cat' \(thing\) in a",
        ),
        ([CAT | {"isthing": 0}, DOG], r"b: category 7 is 'cat' \(stuff\), but 'cat' \(thing\) in a"),
        ([CAT], r"b: category 8 is missing, but 'dog' \(thing\) in a"),
        ([CAT, DOG, {"id": 1, "name": "sky", "isthing": 0}], r"b: category 1 is 'sky' \(stuff\), but missing in a"),
    ],
)
def test_equality_depends_on_id_name_and_isthing(other, difference):
    a, b = Categories.from_json([CAT, DOG]), Categories.from_json(other)
    assert (a == b) is (difference is None)
    if difference is None:
        a.check_equal(b, "a", "b")
    else:
        with pytest.raises(RefineError, match=difference):
            a.check_equal(b, "a", "b")


def test_many_categories_are_read_in_linear_time():
    entries = [{"id": n, "name": f"{n}", "isthing": n % 2} for n in range(60_000)]
    assert len(Categories.from_json(entries)) == 60_000
    with pytest.raises(RefineError, match="id 59999 is used twice"):
        Categories([*Categories.from_json(entries), *Categories.from_json(entries[-1:])])


def test_missing_colours_are_generated():
    first, second, again = Category(1, "cat", True), Category(2, "dog", True), Category(1, "cat", True)
    assert first.color == again.color != second.color
    assert all(0 <= value <= 255 for value in first.color)
    assert Category(1, "cat", True, (1, 2, 3)).color == (1, 2, 3)
