"""Pipeline over many images, with steps that only count."""

import threading
from pathlib import Path

import pytest

from refine.formats.image_list import ImageFile
from refine.inference import pipeline
from refine.inference.pipeline import Job, Workers, run_pipeline

SECONDS = 20
"""Time after which a step that waits for another gives up."""


def images(count):
    return [ImageFile(Path(f"{n}.png"), f"{n}.png", n) for n in range(count)]


class Counting(Job):
    """Job that records the ids of the images in each step; `groups` are the groups of the images."""

    def __init__(self, groups=(), sizes=(), failing=None):
        self.groups, self.sizes, self.failing = dict(enumerate(groups)), dict(enumerate(sizes)), failing or {}
        self.reads, self.batches, self.finished, self.discarded = [], [], [], []

    def read(self, file):
        self.reads.append(file.id)
        return self._step("read", file.id)

    def predict(self, images):
        self.batches.append(list(images))
        return [self._step("predict", image) for image in images]

    def finish(self, file, image, prediction):
        assert file.id == image == prediction
        self.finished.append(self._step("finish", image))
        return image

    def group(self, image):
        return self.groups.get(image)

    def pixels(self, image):
        return self.sizes.get(image, 0)

    def discard(self, finished):
        self.discarded.append(finished)

    def _step(self, name, image):
        if error := self.failing.get((name, image)):
            raise error
        return image


def outcomes(job, count, workers=None):
    return [(file.id, outcome) for file, outcome in run_pipeline(images(count), job, workers)]


@pytest.mark.parametrize("workers", [Workers(), Workers(3, 2, 2), Workers(4, 1, 1), Workers(2, 4, 1)])
def test_results_come_in_order_and_batches_hold_one_group(workers):
    groups = [0, 1, 0, 0, 1, 1, 0, 2, 1, 0, 0, 0]
    job = Counting(groups)
    assert outcomes(job, 12, workers) == [(n, n) for n in range(12)]
    assert sorted(image for batch in job.batches for image in batch) == list(range(12))
    for batch in job.batches:
        assert len(batch) <= workers.batch
        assert len({groups[image] for image in batch}) == 1
    if workers.batch >= 3:
        assert job.batches[0][:3] == [0, 2, 3]  # the next ones of the same size share the first batch


@pytest.mark.parametrize("step", ["read", "predict", "finish"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_failure_concerns_one_image(step, batch):
    error = ValueError(step)
    found = dict(outcomes(Counting(failing={(step, 2): error}), 5, Workers(batch)))
    assert found == {0: 0, 1: 1, 2: error, 3: 3, 4: 4}


def test_the_steps_overlap():
    """Image 1 is read and passes the network while image 0 is still being finished."""
    predicted = threading.Event()

    class Waiting(Counting):
        def predict(self, images):
            if images == [1]:
                predicted.set()
            return super().predict(images)

        def finish(self, file, image, prediction):
            assert image != 0 or predicted.wait(SECONDS)
            return super().finish(file, image, prediction)

    assert outcomes(Waiting(), 3) == [(0, 0), (1, 1), (2, 2)]


def test_few_images_are_in_memory(monkeypatch):
    monkeypatch.setattr(pipeline, "READ_AHEAD", 100)
    for size, most in ((10, 5), (101, 2)):
        job, ahead = Counting(sizes=[size] * 20), []
        for n, _ in enumerate(run_pipeline(images(20), job)):
            ahead.append(len(job.reads) - n)
        assert max(ahead) <= most
        assert len(ahead) == 20


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_after_an_interruption_images_past_the_network_are_finished(error):
    job, used = Counting(failing={("predict", 3): error()}), []
    results = run_pipeline(images(9), job)
    with pytest.raises(error):
        used.extend(file.id for file, _ in results)
    assert used == [0, 1, 2] == job.finished
    assert not job.discarded


def test_results_that_were_not_used_are_discarded():
    job = Counting()
    results = run_pipeline(images(9), job, Workers(1, 1, 4))
    assert [next(results)[0].id for _ in range(3)] == [0, 1, 2]
    results.close()  # while image 2 is being used
    assert job.discarded == [n for n in job.finished if n >= 2]
    assert 2 in job.discarded
