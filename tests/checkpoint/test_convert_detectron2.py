"""Weight files of detectron2 convert completely or not at all."""

import numpy as np
import pytest
import torch
from helpers.detectron2_files import CATEGORIES, detectron2_state, write
from safetensors.torch import save_file

from refine.checkpoint.convert.convert import COCO, convert, convert_file, to_model
from refine.checkpoint.convert.settings import read_settings
from refine.checkpoint.folder import load_model
from refine.cli.main import main
from refine.errors import RefineError
from refine.files import read_json, write_json
from refine.inference.predictor import Predictor
from refine.structures import Categories


def test_command_line_converts_to_a_model_that_predicts(tmp_path, capsys):
    source = write(tmp_path / "model.pkl", {"model": detectron2_state(), "__author__": "d2"})
    write_json(tmp_path / "data.json", {"categories": CATEGORIES})
    words = ["--categories", str(tmp_path / "data.json"), "--report", str(tmp_path / "report.json")]
    assert main(["convert", str(source), "-o", str(tmp_path / "out"), *words]) == 0
    assert "detectron2 model" in capsys.readouterr().out
    report = read_json(tmp_path / "report.json")
    assert report["left"] == {"proposal_generator.anchor_generator.cell_anchors.0": [3, 4]}
    taken = report["taken"]["backbone.bottom_up.res3.0.shortcut.norm.weight"]
    assert taken == {"as": "backbone.layer2.0.downsample.1.weight", "shape": [16]}
    assert len(report["taken"]) + 1 == len(detectron2_state())
    assert report["model"]["backbone"]["name"] == "resnet18"
    assert report["model"]["pixel_mean"] == [1.0, 2.0, 3.0]
    saved = load_model(tmp_path / "out")
    assert len(saved.categories) == 4
    result = Predictor(tmp_path / "out", device="cpu")(np.zeros((64, 96, 3), np.uint8))
    assert result.segment_ids.shape == (64, 96)


def test_command_line_reports_the_error_and_writes_nothing(tmp_path, capsys):
    state = detectron2_state()
    del state["roi_heads.mask_head.mask_fcn3.bias"]
    source = write(tmp_path / "model.pkl", {"model": state})
    write_json(tmp_path / "data.json", CATEGORIES)
    out = tmp_path / "out"
    assert main(["convert", str(source), "-o", str(out), "--categories", str(tmp_path / "data.json")]) == 1
    assert "missing: ibpp.mask_heads.0.convs.1.0.bias (8,)" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.json", "model.pkl"]


def test_any_missing_weight_raises():
    whole, kinds = detectron2_state(), Categories.from_json(CATEGORIES)
    to_model(convert(whole), kinds)
    for name in list(whole)[:-2]:  # the last two are not weights
        with pytest.raises(RefineError, match=r"missing|blocks of"):
            to_model(convert({k: v for k, v in whole.items() if k != name}), kinds)


def test_any_weight_of_another_shape_raises():
    whole, kinds = detectron2_state(), Categories.from_json(CATEGORIES)
    for name, value in list(whole.items())[:-2:4]:
        for changed in (np.concatenate([value, value[:1]]), value.ravel()[:0]):
            with pytest.raises(RefineError, match=r"shape|missing|blocks of|categories"):
                to_model(convert(whole | {name: changed}), kinds)


@pytest.mark.parametrize(
    "name",
    [
        "backbone.bottom_up.res2.0.conv1.bias",
        "roi_heads.keypoint_head.conv1.weight",
        "proposal_generator.rpn_head.conv.conv1.weight",
        "roi_heads.mask_head.mask_fcn5.weight",
    ],
)
def test_an_unexpected_weight_raises(name):
    state = detectron2_state() | {name: np.ones((8, 8, 3, 3), np.float32)}
    with pytest.raises(RefineError, match=r"unsupported layers, first|missing|unexpected"):
        to_model(convert(state), Categories.from_json(CATEGORIES))


def test_another_number_of_categories_raises():
    conversion = convert(detectron2_state())
    with pytest.raises(RefineError, match="80 things and 53 stuff classes, but the weights have 2 and 2"):
        to_model(conversion, Categories.from_json(read_json(COCO)))


def test_unknown_names_raise():
    with pytest.raises(RefineError, match=r"unknown names \(encoder.w"):
        convert({"encoder.w": np.ones(1)})


def test_errors_name_the_file(tmp_path):
    with pytest.raises(RefineError, match=r"none\.pkl: cannot be read \(No such file"):
        convert_file(tmp_path / "none.pkl", tmp_path / "out")
    save_file({"encoder.w": torch.ones(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(RefineError, match=r"odd\.safetensors: weights: unknown names"):
        convert_file(tmp_path / "odd.safetensors", tmp_path / "out")


def test_detectron2_config_completes_the_weights(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text("MODEL: {PIXEL_STD: [57, 57, 58], RPN: {POST_NMS_TOPK_TEST: 500}}\nINPUT: {FORMAT: RGB}\n")
    path = tmp_path / "config.yaml"
    path.write_text(
        "_BASE_: base.yaml\nMODEL:\n  ROI_HEADS: {SCORE_THRESH_TEST: 0.2}\n"
        "  ROI_BOX_HEAD: {POOLER_TYPE: ROIAlign}\n"
        "  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]]}\n"
        "  PANOPTIC_FPN: {COMBINE: {STUFF_AREA_LIMIT: 64}}\nINPUT: {MIN_SIZE_TEST: 640}\n"
    )
    conversion = convert(detectron2_state(), read_settings(path))
    config = conversion.config
    assert (config.channels, config.pixel_std, config.pixel_mean) == ("RGB", (57, 57, 58), (1, 2, 3))
    assert (config.rpn.post_nms_top_n[1], config.rpn.anchor_sizes[0]) == (500, 16)
    assert (config.box_head.score_threshold, config.roi_aligned) == (0.2, False)
    assert (conversion.fusion.stuff_area, conversion.test_size) == (64, (640, 1333))
    path.write_text("MODEL: {RESNETS: {RES5_DILATION: 2}}")
    with pytest.raises(RefineError, match="RES5_DILATION is 2"):
        read_settings(path)


def test_refines_own_config_determines_the_network(tmp_path):
    write_json(tmp_path / "report.json", convert(detectron2_state()).report())
    settings = read_settings(tmp_path / "report.json")
    settings.model.box_head.max_detections = 7
    assert convert(detectron2_state(), settings).config.box_head.max_detections == 7
    settings.model.fpn_channels = 16
    with pytest.raises(RefineError, match="of another shape: fpn"):
        to_model(convert(detectron2_state(), settings), Categories.from_json(CATEGORIES))
