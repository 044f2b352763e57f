"""`refine predict --tile`: files, messages and a run that goes on."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from refine.checkpoint.folder import SavedModel, save_model
from refine.cli.main import main
from refine.formats.id_png import read_png
from refine.formats.id_tiff import read_tiff_runs, write_id_tiff
from refine.formats.resolution import stated_mpp
from refine.formats.runs import Runs
from refine.inference import image_job
from refine.inference.tiling.plan import check_scale
from refine.modeling.model import PanopticModel
from tests.helpers.painted import painted
from tests.helpers.scenes import CATEGORIES, THINGS
from tests.helpers.tiny_network import tiny_config


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    network = PanopticModel(tiny_config(0, {"score_threshold": 0.0, "max_detections": 5}), THINGS, len(CATEGORIES))
    save_model(folder, SavedModel(network, CATEGORIES, (40, 60)))
    return folder


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "images" / "a.tif"
    path.parent.mkdir()
    pixels = painted(0, (90, 140), 9, 30).permute(1, 2, 0).numpy()
    tifffile.imwrite(path, pixels, tile=(32, 32), photometric="rgb", resolution=(20000, 20000), resolutionunit=3)
    return path


def predict(model: Path, image: Path, out: Path, *options: str) -> int:
    words = ["--checkpoint", str(model), "-o", str(out), "--stuff-area", "1", "--score-threshold", "0", *options]
    return main(["predict", str(image), *words])


def test_small_maps_are_pngs(model, image, tmp_path, capsys):
    assert predict(model, image, tmp_path / "out", "--tile", "64", "--overlap", "16", "--scale", "1") == 0
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert content["annotations"][0]["file_name"] == "a.png"
    assert (tmp_path / "out" / "overlays" / "a.jpg").is_file()
    assert content["info"]["tiling"]["tile"] == 64
    assert "140 × 90 pixels are predicted in tiles of 64, at scale 1" in capsys.readouterr().err


def test_large_maps_are_tiffs_and_runs_go_on(model, image, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert predict(model, image, tmp_path / "png", "--tile", "64") == 0
    monkeypatch.setattr(image_job, "MAX_PIXELS", 1000)
    assert predict(model, image, out, "--tile", "64") == 0
    assert "is too large for a PNG" in capsys.readouterr().err
    ids = tifffile.imread(out / "panoptic" / "a.tif")
    np.testing.assert_array_equal(ids, read_png(tmp_path / "png" / "panoptic" / "a.png"))
    content = json.loads((out / "panoptic.json").read_text())
    assert content["annotations"][0]["file_name"] == "a.tif"
    areas = {s["id"]: s["area"] for s in content["annotations"][0]["segments_info"]}
    assert areas == {int(i): int((ids == i).sum()) for i in np.unique(ids) if i}
    words = ["--gt", str(tmp_path / "png/panoptic.json"), "--gt-dir", str(tmp_path / "png/panoptic")]
    words += ["--pred", str(out / "panoptic.json"), "--pred-dir", str(out / "panoptic")]
    assert main(["evaluate", *words, "--out", str(tmp_path / "pq.json")]) == 0
    assert json.loads((tmp_path / "pq.json").read_text())["All"]["pq"] == 1
    capsys.readouterr()
    assert predict(model, image, out, "--tile", "64", "--resume") == 0
    assert "1 of 1 image finished already" in capsys.readouterr().err


def test_runs_go_on_with_the_same_tiles_only(model, image, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(model, image, out, "--overlap", "128") == 0  # --tile auto, and the image is not large
    info = json.loads((out / "panoptic.json").read_text())["info"]
    assert info["tiling"] == {"tile": 1024, "overlap": 128, "scale": None, "mpp": None, "always": False}
    for words, named in (
        ((), "--overlap 128, now 256"),
        (("--overlap", "64"), "--overlap 128, now 64"),
        (("--tile", "1024", "--overlap", "128"), "--tile auto, now 1024"),
        (("--tile", "off"), "--tile auto, now off; --overlap 128, now none"),
    ):
        assert predict(model, image, out, *words, "--resume") == 1
        assert f"was written with other settings: {named}. Give" in capsys.readouterr().err
    assert predict(model, image, out, "--overlap", "128", "--resume") == 0
    assert "1 of 1 image finished already" in capsys.readouterr().err


def test_large_images_choose_tiles_themselves(model, image, tmp_path, capsys):
    assert predict(model, image, tmp_path / "out") == 0  # at most eight times 40 × 60
    assert "are predicted in tiles of 1024, at scale 1" not in capsys.readouterr().err
    Image.new("RGB", (500, 90)).save(image.parent / "b.png")
    assert predict(model, image.parent / "b.png", tmp_path / "out") == 0
    assert "b.png: 500 × 90 pixels are predicted in tiles of 1024, at scale 1" in capsys.readouterr().err
    assert predict(model, image.parent / "b.png", tmp_path / "out", "--tile", "off") == 0
    assert "tiles" not in capsys.readouterr().err.replace("or cut the image into tiles", "")


def test_resolution_and_bad_options(model, image, tmp_path, capsys):
    assert predict(model, image, tmp_path / "out", "--mpp", "1.0", "--tile", "64") == 0
    assert "at scale 0.5" in capsys.readouterr().err
    for words, message in (
        (("--tile", "100", "--overlap", "64"), "--tile 100: expected at least twice the overlap of 64"),
        (("--mpp", "1", "--scale", "1"), "--mpp: cannot be combined with --scale"),
        (("--mpp", "1", "--tile", "off"), "--tile off: --mpp and --overlap need tiles"),
    ):
        assert predict(model, image, tmp_path / "out", *words) == 1
        assert message in capsys.readouterr().err
    Image.new("RGB", (20, 20)).save(image.parent / "c.png")
    assert predict(model, image.parent / "c.png", tmp_path / "out", "--mpp", "1") == 1
    message = "--mpp needs the image's resolution, which the file does not state, or states with different values"
    assert f"refine: error: {image.parent / 'c.png'}: {message}" in capsys.readouterr().err  # the name once
    tifffile.imwrite(
        image.parent / "e.tif", np.zeros((20, 20), np.uint8), resolution=(20000, 10000), resolutionunit="CENTIMETER"
    )
    assert predict(model, image.parent / "e.tif", tmp_path / "out", "--mpp", "1", "--tile", "64") == 1
    assert f"e.tif: {message}" in capsys.readouterr().err
    (image.parent / "d.svs").write_bytes(b"nothing")
    assert predict(model, image.parent / "d.svs", tmp_path / "out") == 1
    assert "d.svs: cannot be read by OpenSlide" in capsys.readouterr().err


def test_results_of_slides_have_their_scale(model, tmp_path):
    path, pixels = tmp_path / "a.svs", painted(0, (90, 140), 9, 30).permute(1, 2, 0).numpy()
    description = "Aperio Image Library v1\r\n140x90 |AppMag = 20|MPP = 0.5"
    tifffile.imwrite(path, pixels, tile=(32, 32), photometric="rgb", description=description, metadata=None)
    assert predict(model, path, tmp_path / "out", "--mpp", "0.5", "--tile", "64", "--save", "csv,labels") == 0
    (row, *_) = csv.DictReader((tmp_path / "out" / "objects.csv").read_text().splitlines())
    assert float(row["um_per_px"]) == 0.5
    assert float(row["area_um2"]) == 0.25 * float(row["area"])
    assert stated_mpp(tmp_path / "out" / "labels" / "a.tif") == pytest.approx(0.5)


def test_scales_that_leave_nothing_are_refused(model, image, tmp_path, capsys):
    message = r"a.tif: at scale 0.0001, 140 × 90 pixels become 0 × 0, expected at least 2 on a side"
    for words in (("--scale", "0.0001"), ("--scale", "0.0001", "--tile", "64"), ("--mpp", "5000")):
        assert predict(model, image, tmp_path / "out", *words) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    check_scale(0.03, (90, 140), "a")  # 3 × 4 pixels
    check_scale(1.0, (1, 9), "a")


def test_small_tiles_are_refused(model, image, tmp_path, capsys):
    assert predict(model, image, tmp_path / "out", "--tile", "64", "--scale", "300") == 1
    error = capsys.readouterr().err
    assert "a.tif: --tile 64: at scale 300" in error
    assert "Traceback" not in error
    with pytest.raises(SystemExit):
        predict(model, image, tmp_path / "out", "--tile", "63")
    assert "--tile: '63': expected an integer from 64" in capsys.readouterr().err


def test_ids_above_24_bits(tmp_path):
    ids = torch.arange(2**24 - 300, 2**24 - 300 + 300 * 700, dtype=torch.int32).view(300, 700)
    write_id_tiff(tmp_path / "a.tif", [ids[:256], ids[256:]], (300, 700), mpp=0.5)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), ids.numpy())
    runs, expected = read_tiff_runs(tmp_path / "a.tif"), Runs.from_map(ids.numpy())
    assert runs.shape == expected.shape
    np.testing.assert_array_equal(runs.starts, expected.starts)
    np.testing.assert_array_equal(runs.ids, expected.ids)
    assert stated_mpp(tmp_path / "a.tif") == pytest.approx(0.5)
