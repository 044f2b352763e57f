"""One-line errors of the command line: what a misspelt, missing or swallowed argument says."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers.drawn_data import write_coco
from PIL import Image

from refine.cli.main import main
from refine.cli.options import LONGEST, tell
from refine.data.build import build_dataset
from refine.data.check.dataset import check_dataset
from refine.data.config import DatasetConfig
from refine.errors import RefineError, counted, did_you_mean
from refine.networks.hub.categories import read_class_map


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory: images, an empty folder, a file, a panoptic.json here and in set, a table in mine."""
    monkeypatch.chdir(tmp_path)
    for name in ("images", "empty", "set", "photos", "mine"):
        Path(name).mkdir()
    for name in ("photos/b.png", "photos/b.jpg"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(name)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("images/a.png")
    Path("file").touch()
    Path("truth/panoptic").mkdir(parents=True)
    Path("truth/panoptic/a.png").write_text("drawn by hand")
    Path("mine/objects.csv").write_text("drug,dose")
    category = {"id": 1, "name": "cell", "isthing": 1}
    image = {"id": 1, "file_name": "a.png", "width": 8, "height": 8}
    content = {"images": [image], "annotations": [], "categories": [category]}
    for name in ("panoptic.json", "set/panoptic.json"):
        Path(name).write_text(json.dumps(content))
    return tmp_path


def error(capsys, line: str) -> tuple[int, str]:
    """Exit code and only line on stderr of a command line."""
    try:
        code = main(line.split())
    except SystemExit as ended:
        code = ended.code
    out, message = capsys.readouterr()
    assert out == ""
    assert message.count("\n") == 1, message
    assert message.startswith("refine: error: ")
    return code, message.removeprefix("refine: error: ").strip()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("predict gone -o out --checkpoint nuclei", "gone: does not exist; check the path"),
        ("predict gone*.png -o out --checkpoint nuclei", "gone*.png: no image matches this pattern"),
        ("predict empty -o out --checkpoint nuclei", "empty: contains no image"),
        ("predict gone --json panoptic.json -o out --checkpoint nuclei", "gone: does not exist"),
        ("predict images --json gone -o out --checkpoint nuclei", "gone: does not exist"),
        ("merge gone", "gone: does not exist"),
        ("explain gone -o out --checkpoint nuclei", "gone: does not exist"),
        ("predict images -o out --checkpoint nuclie", "nuclie: no such model (did you mean nuclei?); give"),
        (
            "predict images -o out --checkpoint nuclei --save overlai",
            "'overlai' (did you mean overlay?)",
        ),
        (
            "predict images -o out --checkpoint nuclei --method hueristic",
            "(did you mean heuristic?); give one",
        ),
        ("import labels --stuff sky images -o out", "labels: is a format; give SOURCE after it"),
        ("reproduce tabel3 --data nuclei", "tabel3: no such table (did you mean table3?)"),
        ("reproduce table3 --data nucle", "nucle: no such config file (did you mean nuclei?)"),
        ("train", "--config: choose a config: a YAML file, or one of refine's own"),
        (
            "train --config nuclei --optim.maxsteps 1",
            "unknown field (did you mean optim.max_steps?)",
        ),
        ("train --config nuclei --optim.ema x --print_config", "optim.ema: expected a number or null, got x"),
    ],
)
def test_what_is_missing_or_misspelt_is_named(folder, capsys, line, message):
    code, text = error(capsys, line)
    assert (code, message in text) == (1, True), text
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prdict images", "unknown value 'prdict' (did you mean predict?); expected one of predict, merge"),
        ("predict images", "the following arguments are required: -o/--out; see refine predict --help"),
        ("predict images -o out --chekpoint nuclei", "--chekpoint nuclei (did you mean --checkpoint?)"),
        (
            "predict images -o out --ue-region cor",
            "unknown value 'cor' (did you mean core?); expected",
        ),
        (
            "import label images -o out",
            "'label' (did you mean labels?); expected one of labels",
        ),
        ("predict --semantic nuclei images -o out", "required: source; --semantic takes the words that follow it"),
        (
            "predict --ray images -o out",
            "--ray takes the words that follow it: write source before",
        ),
        ("import --stuff sky images -o out", "required: SOURCE; --stuff takes the words"),
        ("export --images images/a.png nuclei -o x.onnx", "required: checkpoint; --images takes the words"),
        ("predict images -o out --range 0 255", "--range: '0': expected two increasing numbers with a comma"),
        ("predict images -o out --range 9,0", "--range: '9,0': expected two increasing numbers with a comma"),
        ("train --config", "argument --config: expected one argument; see refine train --help"),
        ("evaluate --out out.json", "give --gt, --gt-dir, --pred and --pred-dir; or --checkpoint"),
    ],
)
def test_a_wrong_command_line_is_one_line_without_the_usage(folder, capsys, line, message):
    code, text = error(capsys, line)
    assert (code, message in text) == (2, True), text


@pytest.mark.parametrize("value", ["0,4095", "-1000,400", "full"])
def test_no_option_swallows_the_source_after_a_range(folder, capsys, value):
    assert error(capsys, f"predict --range {value} gone -o out --checkpoint nuclei")[1].startswith("gone: does not")


FRACTIONS = ("--score-threshold", "--overlap-threshold", "--ue-threshold")


@pytest.mark.parametrize(
    ("line", "options", "values", "expected"),
    [
        *(
            (line, options, values, expected)
            for line in (
                "predict images -o out",
                "explain images -o out",
                "evaluate --gt panoptic.json",
                "export nuclei -o x.onnx",
                "fuse --instances file --semantic images --categories panoptic.json -o out",
            )
            for options, values, expected in (
                (FRACTIONS, ("nan", "3", "-0.1", "x"), "a number from 0 to 1"),
                (("--sigma",), ("nan", "0", "inf"), "a number above 0"),
                (("--stuff-area",), ("-1", "nan"), "an integer from 0"),
            )
        ),
        ("synthesize out", ("--images",), ("0", "x"), "an integer from 1"),
        ("synthesize out --images 1", ("--size 64",), ("63",), "an integer from 64"),
        ("synthesize out --images 1", ("--seed",), ("-1",), "an integer from 0"),
        ("train-occlusion -o out", ("--min-score", "--pair-overlap"), ("nan", "3"), "a number from 0 to 1"),
        ("reproduce table3", ("--budget",), ("nan", "-1"), "a number above 0"),
        ("serve", ("--port",), ("65536",), "an integer from 0 to 65535"),
    ],
)
def test_a_value_out_of_range_is_named_by_its_option(folder, capsys, line, options, values, expected):
    for option, value in product(options, values):
        code, text = error(capsys, f"{line} {option} {value}")
        assert code == 2
        assert text.startswith(f"argument {option.split()[0]}: '{value}': expected {expected}"), text


def test_the_region_of_erasing_fits_what_there_is(folder, capsys):
    line = "fuse --instances file --semantic images --confidence images --categories panoptic.json -o out"
    code, text = error(capsys, f"{line} --unknown-erasing --ue-region dilated")
    assert (code, text[:22]) == (1, "--ue-region dilated: n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("predict images -o file --checkpoint nuclei", "--out file: file is a file; choose a folder"),
        ("predict images -o file/deep --checkpoint nuclei", "file is a file; choose a folder"),
        ("train --config scenes --out file", "--out file: file is a file"),
        ("explain images -o file --checkpoint nuclei", "--out file: file is a file"),
        ("synthesize file --images 1", "--out file: file is a file"),
        ("train --confg nuclei", "--confg: unknown option (did you mean --config?)"),
        ("export nuclei --out file/x.onnx", "file is a file; choose another path"),
        ("check-data --images images --json file --segments images --out file/x.json", "choose another path"),
        ("reproduce table3 --data nuclei --out file", "--out file: file is a file"),
        (
            "fuse --instances file --semantic images --categories panoptic.json -o file",
            "--out file: file is a file",
        ),
        ("predict images -o images --checkpoint nuclei", "--out images: is also an input folder"),
        ("explain images -o ./images --checkpoint nuclei", "is also an input f"),
        ("fuse --instances file --semantic images --categories panoptic.json -o images", "is also an input folder"),
        (
            "predict images -o set --checkpoint nuclei",
            "set/panoptic.json: was not written by this version of refine, and would be replaced",
        ),
        (
            "predict images -o truth --checkpoint nuclei",
            "truth/panoptic: was not written by this version of refine, and would be replaced",
        ),
        (
            "predict images -o mine --checkpoint nuclei",
            "mine/objects.csv: was not written by this version of refine, and would be replaced",
        ),
        ("explain photos/b.jpg -o photos --checkpoint nuclei", "--out photos: is also an input folder"),
        (
            "synthesize set --images 1 --size 64 64",
            "set: is not an empty folder, but holds panoptic.json; choose another one",
        ),
        ("predict images --json panoptic.json -o . --checkpoint nuclei", "panoptic.json: is also an input file"),
        (
            "evaluate --gt panoptic.json --gt-dir images --pred file --pred-dir images --out empty",
            "empty: is a folder",
        ),
        ("benchmark nuclei --out empty", "--out empty: is a folder; expected the path of a file"),
        ("check-data --images images --json panoptic.json --segments images --out empty", "is a folder"),
    ],
)
def test_outputs_never_replace_or_mix_with_inputs(folder, capsys, line, message):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, text = error(capsys, line)
    assert (code, message in text) == (1, True), text
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_swapped_folders_are_told(tmp_path, capsys):
    files = write_coco(tmp_path)
    build_dataset(DatasetConfig(images=str(files.images), json=str(files.json), segments=str(files.segments)))
    swapped = DatasetConfig(images=str(files.segments), json=str(files.json), segments=str(files.images))
    with pytest.raises(RefineError, match=r"^data\.train\.images, data\.train\.segments: the folders are swapped"):
        build_dataset(swapped, "data.train.")
    with pytest.raises(RefineError, match=r"^--images, --segments: the folders are swapped, as .*; exchange them"):
        check_dataset(files.segments, files.json, files.images)
    words = ("evaluate", "--images", files.segments, "--segments", files.images, "--json", files.json)
    assert main([*map(str, words), "--checkpoint", "nuclei", "--out", str(tmp_path / "x.json")]) == 1
    assert capsys.readouterr().err.startswith("refine: error: --images, --segments: the folders are swapped")


def test_a_class_map_may_be_text():
    assert read_class_map('{"grass": "plant", "rug": null}') == {"grass": "plant", "rug": None}
    with pytest.raises(RefineError, match=r"--class-map \{grass: plant\}: is not valid JSON"):
        read_class_map("{grass: plant}")
    with pytest.raises(RefineError, match="expected an object such as"):
        read_class_map('{"grass": 3}')


def test_similar_names_and_numbers_with_nouns():
    assert did_you_mean("SEO", ["soe", "shr"]) == " (did you mean soe?)"
    assert did_you_mean("xyz", ["soe", "shr"]) == ""
    assert [counted(n, "image") for n in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    assert counted(2, "class", "classes") == "2 classes"


def test_a_message_is_one_line_of_bounded_length(capsys):
    tell("error", "a\n\x1b[31mb" + 5000 * "x" + "\ud800; fix it")
    line = capsys.readouterr().err
    assert line.startswith("refine: error: a\\n\\x1b[31mb")
    assert line.endswith("\\ud800; fix it\n")
    assert len(line) == len("refine: error: ") + LONGEST + 1
