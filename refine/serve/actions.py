"""Event handlers of the page."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from refine.errors import RefineError
from refine.fusion.config import FusionConfig, Method
from refine.serve.models import Models, Upload, Uploads
from refine.serve.results import archive_file, overlay_file, view
from refine.structures import PanopticResult


class Actions:
    """Event handlers of the page; `gr.Request` identifies the browser session.

    Args:
        models: selectable models.
        folder: folder of uploaded files.
        examples: example images of the page.
    """

    def __init__(self, models: Models, folder: str | Path, examples: Collection[Path] = ()) -> None:
        self.models, self.uploads = models, Uploads(folder, examples)

    def open(
        self,
        request: gr.Request,
        path: str | None,
        model: str | None,
        method: Method,
        score: float,
        erase: bool,
        certainty: float,
    ) -> tuple[Any, Any]:
        """Run the network on a new image or with a new model, then fuse."""
        if path is None:
            return self.close(request)
        visitor = _visitor(request)
        serial = self.uploads.begin(visitor, Path(path))
        try:
            if model is None:
                raise RefineError("Choose a model that fits the image.")
            upload = replace(self.models.predict(path, model), serial=serial)
        except RefineError as error:
            return _failed(error) if self.uploads.is_current(visitor, serial) else _unchanged()
        if not self.uploads.put(visitor, upload):  # the page shows another image since, or none
            return _unchanged()
        return self.fuse(request, method, score, erase, certainty)

    def fuse(
        self, request: gr.Request, method: Method, score: float, erase: bool, certainty: float
    ) -> tuple[Any, Any]:
        """Fuse the same image with new settings."""
        upload = self.uploads.get(_visitor(request))
        if upload is None:
            return _unchanged()
        try:
            fusion = self._fusion(upload, score, erase, certainty)
            result = self.models.fuse(upload, method, fusion)
            shown = view(upload, result, self.models.remarks(upload, fusion)), gr.Row(visible=True)
        except RefineError as error:
            shown = _failed(error)
        return shown if self.uploads.is_current(_visitor(request), upload.serial) else _unchanged()

    def save_archive(
        self, request: gr.Request, method: Method, score: float, erase: bool, certainty: float
    ) -> dict[str, str]:
        """Return the result as a zip archive."""
        upload = self._kept(request)
        return archive_file(upload, self._result(upload, method, score, erase, certainty))

    def save_overlay(
        self, request: gr.Request, method: Method, score: float, erase: bool, certainty: float
    ) -> dict[str, str]:
        """Return the overlay as a file."""
        upload = self._kept(request)
        return overlay_file(upload, self._result(upload, method, score, erase, certainty))

    def close(self, request: gr.Request) -> tuple[None, Any]:
        """Remove the image of a session from the page."""
        self.uploads.drop(_visitor(request))
        return None, gr.Row(visible=False)

    def leave(self, request: gr.Request) -> None:
        """Delete the image of a session whose tab was closed."""
        self.uploads.drop(_visitor(request))

    def own_settings(self, model: str | None) -> tuple[Any, ...]:
        """Return the settings of a model: its fusion rule and thresholds, and the rules for which it has heads."""
        if model is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.Slider(visible=False)
        predictor = self.models.predictor(model)
        own, possible = predictor.fusion, predictor.methods
        missing = [name for name in get_args(Method) if name not in possible]
        info = "decides which of two overlapping objects lies in front"
        if missing:
            info += f"; {', '.join(missing)} need a head that this model does not have"
        return (
            gr.Dropdown(possible, value=predictor.method, info=info),
            own.score_threshold,
            own.unknown_erasing,
            gr.Slider(value=own.ue_threshold, visible=own.unknown_erasing),
        )

    def _kept(self, request: gr.Request) -> Upload:
        upload = self.uploads.get(_visitor(request))
        if upload is None:
            raise gr.Error("The image is no longer stored; open it again.")
        return upload

    def _result(
        self, upload: Upload, method: Method, score: float, erase: bool, certainty: float
    ) -> PanopticResult:
        try:
            return self.models.fuse(upload, method, self._fusion(upload, score, erase, certainty))
        except RefineError as error:
            raise gr.Error(str(error)) from error

    def _fusion(self, upload: Upload, score: float, erase: bool, certainty: float) -> FusionConfig:
        """Return the model's thresholds, of which the page overrides some."""
        own = self.models.predictor(upload.model).fusion
        return replace(own, score_threshold=score, unknown_erasing=erase, ue_threshold=certainty)


def _unchanged() -> tuple[Any, Any]:
    """Leave the page as it is."""
    return gr.skip(), gr.skip()


def _failed(error: RefineError) -> tuple[Any, Any]:
    return {"error": str(error)}, gr.Row(visible=False)


def _visitor(request: gr.Request) -> str:
    return str(request.session_hash)
