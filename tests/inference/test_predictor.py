"""Inputs and results of a predictor, and the state of its model."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny_run import CATEGORIES, tiny_model
from PIL import Image

from refine.checkpoint.folder import SavedModel
from refine.data.resize import network_size
from refine.errors import RefineError
from refine.formats.image_like import to_tensor
from refine.fusion import FusionConfig
from refine.inference.predictor import Predictor
from refine.modeling.model import PanopticModel
from refine.structures import Categories

ALL = FusionConfig(score_threshold=0.0, stuff_area=0)


def saved_model(ranking: bool = False, iterations: int = 1) -> SavedModel:
    torch.manual_seed(0)
    model = PanopticModel(replace(tiny_model(iterations), ranking=ranking), 2, 3)
    return SavedModel(model, Categories.from_json(CATEGORIES), test_size=(64, 128), fusion=ALL)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


RGB = random_image(20, 30)
ALPHA = np.dstack([RGB, np.full((20, 30), 255, np.uint8)])


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind)
    return content.getvalue()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (RGB, RGB),
        (RGB[:, ::-1], RGB[:, ::-1]),
        (RGB[::-1, :, ::-1], RGB[::-1, :, ::-1]),
        (np.asarray(Image.fromarray(RGB)), RGB),  # not writable
        (RGB / np.float32(255), RGB),
        (RGB / 255.0, RGB),
        (RGB.astype(np.int64), RGB),
        (RGB[..., 0], RGB[..., :1].repeat(3, 2)),
        (RGB[..., :1], RGB[..., :1].repeat(3, 2)),
        (RGB[..., 0] > 99, (RGB[..., :1] > 99).repeat(3, 2) * np.uint8(255)),
        (ALPHA, RGB),
        (ALPHA * np.array([1, 1, 1, 0], np.uint8), np.full_like(RGB, 255)),  # transparency is composited over white
        (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
        (torch.from_numpy(RGB).permute(2, 0, 1) / 255, RGB),
        (torch.from_numpy(RGB[..., 0]), RGB[..., :1].repeat(3, 2)),
        (Image.fromarray(RGB), RGB),
        (encoded(RGB), RGB),
        (bytearray(encoded(RGB, "BMP")), RGB),
    ],
    ids=lambda value: type(value).__name__,
)
def test_images_of_all_kinds(image, expected) -> None:
    tensor = to_tensor(image)
    assert tensor.dtype == torch.uint8
    np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (None, TypeError, "expected a path, bytes, .* got NoneType"),
        (7, TypeError, "got int"),
        ({"image": RGB}, TypeError, "got dict"),
        (b"", RefineError, r"image \(0 bytes\): the file is empty"),
        (b"no image", RefineError, r"image \(8 bytes\): is not "),
        (encoded(RGB)[:200], RefineError, r"image \(200 bytes\): is damaged"),
        (Image.new("RGB", (0, 5)), ValueError, r"has no pixels \(0 × 5\)"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"got ndarray \(0, 5, 3\)"),
        (RGB.transpose(2, 0, 1), ValueError, r"expected an array \(H, W\).*got ndarray \(3, 20, 30\)"),
        (torch.from_numpy(RGB), ValueError, r"or a tensor \(C, H, W\); got Tensor \(20, 30, 3\)"),
        (RGB[None], ValueError, r"got ndarray \(1, 20, 30, 3\)"),
        (RGB * 1.0, ValueError, r"floats 0-1, got torch.float64 0 to 255; scale it"),
        (RGB / 255 - 0.5, ValueError, "floats 0-1, got torch.float64 -0.5"),
        (np.where(RGB > 9, np.nan, 0), ValueError, "has values that are not finite"),
        (torch.full((3, 4, 5), torch.inf), ValueError, "has values that are not finite"),
        (ALPHA.astype(np.uint16) * 16, ValueError, "expected uint8 with an alpha channel"),
        (np.array([["a"]]), TypeError, "expected an array or a tensor"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_invalid_images_are_reported(image, error, words) -> None:
    with pytest.raises(error, match=words):
        to_tensor(image)


def test_16_bit_arrays_are_scaled_as_16_bit_files(tmp_path) -> None:
    wide = random_image(40, 30)[..., 0].astype(np.uint16) * 13 + 100
    Image.fromarray(wide).save(tmp_path / "wide.png")
    expected = to_tensor(tmp_path / "wide.png")
    assert expected.max() == 255
    for kind in (wide, wide.astype(np.int64), torch.from_numpy(wide.astype(np.int32)), np.dstack([wide] * 3)):
        assert torch.equal(to_tensor(kind), expected)


def test_dark_16_bit_arrays_are_scaled_as_16_bit_files(tmp_path) -> None:
    dark = random_image(40, 30)[..., 0].astype(np.uint16) // 2
    Image.fromarray(dark).save(tmp_path / "dark.png")
    expected = to_tensor(tmp_path / "dark.png")
    assert expected.max() == 255
    for kind in (dark, dark.astype(np.int16), torch.from_numpy(dark.astype(np.int32)), np.dstack([dark] * 3)):
        assert torch.equal(to_tensor(kind), expected)


@pytest.mark.parametrize("iterations", [0, 2])
def test_a_result_does_not_depend_on_the_batch(iterations: int) -> None:
    """Images of several shapes, two of which are padded to the same size."""
    predictor = Predictor(saved_model(iterations=iterations), device="cpu")
    sizes = [(64, 96), (64, 90), (96, 64), (50, 100), (64, 128), (64, 96)]
    images = [to_tensor(random_image(*size, seed)) for seed, size in enumerate(sizes)]
    alone = [predictor.predict_raw([image])[0] for image in images]
    for order in (range(6), [5, 3, 1, 0, 2, 4], [0, 4]):
        for n, batched in zip(order, predictor.predict_raw([images[n] for n in order]), strict=True):
            assert batched.instances.image_size == sizes[n]
            # Only the order of summation may differ between batch sizes.
            torch.testing.assert_close(batched.instances.boxes, alone[n].instances.boxes, atol=1e-3, rtol=0)
            torch.testing.assert_close(batched.instances.scores, alone[n].instances.scores, atol=1e-5, rtol=0)
            torch.testing.assert_close(batched.sem_confidence, alone[n].sem_confidence, atol=1e-4, rtol=0)
            assert (batched.sem_seg != alone[n].sem_seg).float().mean() < 1e-3


def test_a_list_equals_single_images(tmp_path) -> None:
    predictor = Predictor(saved_model(), device="cpu")
    Image.fromarray(random_image(40, 64, 1)).save(tmp_path / "a.png")
    images = [random_image(64, 96), tmp_path / "a.png", Image.fromarray(random_image(64, 96, 2))]
    results = predictor(images)
    assert predictor([]) == []
    assert [result.path for result in results] == [None, tmp_path / "a.png", None]
    for image, result in zip(images, results, strict=True):
        expected = predictor(image)
        assert torch.equal(result.segment_ids, expected.segment_ids)
        assert result.segments == expected.segments
    with pytest.raises(TypeError, match=r"images\[1\]: image: expected a path"):
        predictor([RGB, None])


def test_images_cannot_be_resized_to_one_pixel() -> None:
    predictor = Predictor(saved_model())
    with pytest.raises(RefineError, match=r"test_size is \(1, 9\); give at least 2 pixels for both sides"):
        predictor.test_size = (1, 9)
    predictor.test_size = (2, 9)


def test_a_loaded_model_keeps_its_mode_and_device() -> None:
    saved = saved_model()
    saved.model.train()
    saved.model.fpn.eval()
    modes = [module.training for module in saved.model.modules()]
    result = Predictor(saved)(RGB)
    assert [module.training for module in saved.model.modules()] == modes
    assert saved.model.pixel_mean.device.type == "cpu"  # even if there is a GPU
    saved.model.eval()
    assert torch.equal(Predictor(saved)(RGB).segment_ids, result.segment_ids)
    saved.model.train()
    with pytest.raises(TypeError):
        Predictor(saved).predict_raw([torch.zeros(3, 20, 30, dtype=torch.uint8)], min_score="high")
    assert saved.model.training


def test_another_device_copies_the_model() -> None:
    saved = saved_model()
    predictor = Predictor(saved, device="meta")
    assert predictor.device.type == "meta"
    assert saved.model.pixel_mean.device.type == "cpu"
    assert Predictor(saved, device="cpu").model is saved.model


def test_a_model_must_be_named() -> None:
    with pytest.raises(TypeError, match="checkpoint"):
        Predictor(device="cpu")  # type: ignore[call-arg]


def test_thresholds_as_a_mapping_or_a_config() -> None:
    saved = saved_model()
    changed = Predictor(saved, fusion={"score_threshold": 0.3})
    assert changed.fusion == replace(ALL, score_threshold=0.3)
    assert saved.fusion == ALL
    assert Predictor(saved, fusion=FusionConfig()).fusion == FusionConfig()
    assert Predictor(saved).fusion == ALL
    with pytest.raises(RefineError, match="threshold: unknown field"):
        Predictor(saved, fusion={"threshold": 0.3})


def test_probabilities_agree_with_the_semantic_map() -> None:
    predictor = Predictor(saved_model(), device="cpu", fusion={"unknown_erasing": True, "ue_region": "dilated"})
    image = to_tensor(random_image(50, 70))
    (raw,) = predictor.predict_raw([image])
    best, classes = raw.sem_probabilities().max(0)
    torch.testing.assert_close(best, raw.sem_confidence, atol=1e-4, rtol=0)
    assert ((classes == raw.sem_seg) | (raw.sem_confidence < 0.51)).all()
    assert predictor.fuse(raw).segment_ids.shape == (50, 70)


def test_the_ranking_is_computed_on_the_resized_image() -> None:
    """The ranking scores are computed on boxes in the resized image, whatever the size of the original image."""
    predictor = Predictor(saved_model(ranking=True), method="srm")
    for size in ((32, 48), (128, 192)):
        (raw,) = predictor.predict_raw([to_tensor(random_image(*size))])
        frame = network_size(size, 64, 128)
        assert frame == (64, 96)
        scale = 64 / size[0]
        instances = replace(raw.instances, image_size=frame, boxes=raw.instances.boxes * scale)
        expected = predictor.model.ranking.predict(instances)
        assert (expected > 0).any()
        torch.testing.assert_close(predictor.fusion_heads()["ranking"](raw.instances), expected)


def test_possibly_missed_objects_are_warned_of_once(recwarn) -> None:
    predictor = Predictor(saved_model(), device="cpu", fusion={"score_threshold": 0.0})
    small, large = random_image(64, 96), random_image(192, 288)
    predictor([small, large, large])
    full, reduced = (str(warning.message) for warning in recwarn)
    assert full.startswith("images[0] is full: 10 objects were found")
    assert "predictor.limit_detections(40)" in full
    assert reduced.startswith("images[1] is reduced to less than 50%")
    predictor(large)
    assert len(recwarn) == 2
    Predictor(saved_model(), device="cpu", fusion={"score_threshold": 1.0})(small)
    assert len(recwarn) == 2
