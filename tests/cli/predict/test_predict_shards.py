"""Parts of a job (`--shard`) and `refine merge`, and images that fail."""

import json
import shutil

import numpy as np
import pytest
from helpers.predict_runs import content, files, run
from PIL import Image

from refine.cli.main import main
from refine.formats.journal import Journal, journal_path
from refine.formats.stream import DESCRIPTION
from refine.formats.writer import PredictionWriter


def test_shards_are_merged(checkpoint, images, whole, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--recursive", "--shard"]
    assert main(["merge", str(out)]) == 1
    assert "does not exist" in capsys.readouterr().err
    out.mkdir()
    assert main(["merge", str(out)]) == 1
    assert "holds no finished shard" in capsys.readouterr().err
    for shard in ("3/3", "1/3"):
        assert run(checkpoint, images, out, *words, shard) == 0
    assert not (out / "panoptic.json").exists()
    assert main(["merge", str(out)]) == 1
    assert "1 of 3 shards are not finished: 2/3; run them again" in capsys.readouterr().err
    assert run(checkpoint, images, out, *words, "2/3") == 0
    assert run(checkpoint, images, out, *words, "3/3", "--resume") == 0
    assert "2 of 2 images finished already" in capsys.readouterr().err
    assert main(["merge", str(out)]) == 0
    assert files(out) == whole


def test_shards_report_what_failed(checkpoint, images, tmp_path, capsys):
    out = tmp_path / "out"
    (images / "x/broken.png").write_bytes(b"no image")
    words = ["--recursive", "--save", "coco,instances", "--shard"]
    assert [run(checkpoint, images, out, *words, f"{n}/2") for n in (1, 2)] == [0, 1]
    assert main(["merge", str(out)]) == 1
    assert "1 of 5 images failed" in capsys.readouterr().err
    assert [failure["file_name"] for failure in json.loads((out / "failed.json").read_text())] == ["x/broken.png"]
    assert len(content(out)["images"]) == 4
    assert run(checkpoint, images, tmp_path / "one", *words[:-1]) == 1
    assert (out / "instances.json").read_bytes() == (tmp_path / "one" / "instances.json").read_bytes()
    for shard in ("0/2", "3/2", "1", "1/x"):
        with pytest.raises(SystemExit):
            run(checkpoint, images, out, "--shard", shard)


def test_shards_of_other_images_are_not_merged(checkpoint, images, tmp_path, capsys):
    out, words = tmp_path / "out", ["--recursive", "--save", "coco", "--shard"]
    assert run(checkpoint, images, out, *words, "1/2") == 0
    shutil.copy(next(images.rglob("*.png")), images / "0.png")
    assert run(checkpoint, images, out, *words, "2/2") == 0
    assert main(["merge", str(out)]) == 1
    assert "2-of-2.jsonl: was written for another list of images than 1-of-2" in capsys.readouterr().err
    assert run(checkpoint, images, out, *words, "1/2", "--resume") == 1
    assert "another list of images; run all shards without --resume" in capsys.readouterr().err
    assert run(checkpoint, images, out, *words, "1/2") == 0
    assert main(["merge", str(out)]) == 0
    assert len(content(out)["images"]) == 5


def test_shards_with_other_formats_are_not_merged(checkpoint, images, tmp_path, capsys):
    out, words = tmp_path / "out", ["--recursive", "--shard"]
    assert run(checkpoint, images, out, *words, "1/2", "--save", "coco,geojson,cvat,instances") == 0
    assert run(checkpoint, images, out, *words, "2/2", "--save", "coco,cvat,instances") == 0
    assert main(["merge", str(out)]) == 1
    assert "2-of-2.jsonl: was written with other settings than 1-of-2" in capsys.readouterr().err
    assert run(checkpoint, images, out, *words, "2/2", "--save", "instances,cvat,geojson") == 0  # in any order
    assert main(["merge", str(out)]) == 0


def test_finished_results_are_listed_though_all_others_fail(checkpoint, images, tmp_path, capsys):
    out, words = tmp_path / "out", ["--recursive", "--save", "coco"]
    assert run(checkpoint, images, out, *words) == 0
    names = [image["file_name"] for image in content(out)["images"]]
    (images / names[-1]).write_bytes(b"no image")
    assert run(checkpoint, images, out, *words, "--resume") == 1
    assert "1 of 4 images failed" in capsys.readouterr().err
    assert [image["file_name"] for image in content(out)["images"]] == names[:-1]
    failed = (out / "failed.json").read_bytes()
    assert run(checkpoint, images, out, *words, "--resume", "--score-threshold", "0.9") == 1
    assert "was written with" in capsys.readouterr().err
    assert (out / "failed.json").read_bytes() == failed
    # A shard without a result is finished too, or nothing could be merged.
    assert [run(checkpoint, images, out, *words, "--shard", f"{n}/4") for n in (1, 2, 3, 4)] == [0, 0, 0, 1]
    assert "no image could be used (1 image given)" in capsys.readouterr().err
    assert main(["merge", str(out)]) == 1
    assert [image["file_name"] for image in content(out)["images"]] == names[:-1]


def test_joint_files_of_an_earlier_run_are_removed(checkpoint, images, tmp_path):
    out = tmp_path / "out"
    assert run(checkpoint, images, out, "--recursive", "--save", "coco,instances") == 0
    assert run(checkpoint, images / "x", out, "--save", "coco") == 0
    assert not (out / "instances.json").exists()


@pytest.mark.parametrize(
    ("running", "options"), [("1-of-2", []), ("", ["--shard", "1/2"]), ("1-of-3", ["--shard", "1/2"])]
)
def test_lists_of_a_run_in_progress_are_kept(running, options, checkpoint, images, tmp_path, capsys):
    out = tmp_path / "out"
    journal, sibling = (Journal(journal_path(out, part), {}) for part in (running, "2-of-2"))
    if not options:
        sibling.close()
    (out / "unfinished.list-of-things.jsonl").touch()  # no list of refine
    (out / "panoptic.json").write_text(f'{{"info": {{"description": "{DESCRIPTION}')
    before = files(out)
    assert run(checkpoint, images / "x", out, *options) == 1
    assert f"{journal.path}: another run is writing to this file" in capsys.readouterr().err
    assert files(out) == before
    journal.close()
    assert run(checkpoint, images / "x", out, *options) == 0
    lists = {path.name for path in out.glob("*.jsonl")}
    assert lists == {"unfinished.2-of-2.jsonl" if options else "sources.jsonl", "unfinished.list-of-things.jsonl"}


def described(out):
    """Return whether panoptic.json states the areas of the segments in the maps."""
    for annotation in content(out)["annotations"]:
        ids = np.asarray(Image.open(out / "panoptic" / annotation["file_name"])).astype(int) @ [1, 256, 65536]
        found, areas = np.unique(ids[ids > 0], return_counts=True)
        if {s["id"]: s["area"] for s in annotation["segments_info"]} != dict(zip(found, areas, strict=True)):
            return False
    return True


@pytest.mark.parametrize(
    ("first", "second"), [(["1/1"], []), ([], ["1/2", "2/2"]), (["1/2", "2/2"], ["1/1"]), (["1/1"], ["1/2", "2/2"])]
)
@pytest.mark.parametrize("is_killed", [False, True])
def test_lists_of_runs_with_other_parts_do_not_describe_new_results(
    first, second, is_killed, checkpoint, images, tmp_path, monkeypatch
):
    """A run that was killed after its last image, or whose shards were not merged; and a second one."""
    out, words = tmp_path / "out", ["--recursive", "--save", "coco"]

    def start(shards, *more):
        parts = [["--shard", shard] for shard in shards] or [[]]
        return {run(checkpoint, images, out, *words, *part, *more) for part in parts}

    with monkeypatch.context() as patch:
        if is_killed:
            patch.setattr(PredictionWriter, "close", lambda writer: writer.json)
        assert start(first) == {0}
    assert start(second, "--score-threshold", "0.9") == {0}
    assert main(["merge", str(out)]) == (0 if second else 1)
    assert described(out)
    start(first, "--resume")  # which the settings of the second run may forbid
    main(["merge", str(out)])
    assert described(out)
