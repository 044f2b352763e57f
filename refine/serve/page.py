"""The page: where things stand on it, and which of them asks for what. Gradio draws it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from refine.errors import RefineError
from refine.fusion.config import FusionConfig, Method
from refine.serve.results import Models, Upload, archive_file, overlay_file, view

EXAMPLES = (("mahotas", "demos/data/nuclear.png"), ("skimage", "data/coffee.png"), ("skimage", "data/chelsea.png"))
"""Pictures inside other packages' wheels, offered where those are installed."""

MAX_FILE = "200mb"
"""A larger file is not accepted."""

SESSIONS = 50
"""Visitors whose last picture is kept; the earliest is forgotten first."""

HOUR = 3600

HERE = Path(__file__).parent

INTRODUCTION = """# refine
Every pixel gets a class, every countable object its own id. Drop a picture, then point at what was found."""


def serve(models: Models, host: str, port: int) -> None:
    """Serve the page until interrupted.

    Raises:
        RefineError: the address cannot be used.
    """
    page = build(models)
    launch(page, host, port)
    print(f"open {page.local_url} in a browser; Ctrl-C ends it", flush=True)
    try:
        while True:
            time.sleep(HOUR)
    finally:
        page.close()


def launch(page: gr.Blocks, host: str, port: int) -> None:
    """Start the page in threads of its own; `page.close()` ends it.

    Raises:
        RefineError: the address cannot be used.
    """
    system = ("system-ui", "sans-serif")
    try:
        page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            max_file_size=MAX_FILE,
            allowed_paths=[str(path) for path in packaged_pictures()],
            state_session_capacity=SESSIONS,
            footer_links=[],
            theme=gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=system, font_mono=("monospace",)),
            css=_asset("page.css"),
        )
    except OSError as error:
        raise RefineError(f"{host}:{port}: cannot be served; name another --port or --host") from error


def build(models: Models) -> gr.Blocks:
    """The page, not yet served."""
    first = models.names[0]
    saved = models.load(first)
    examples = packaged_pictures()
    with gr.Blocks(title="refine", analytics_enabled=False, delete_cache=(HOUR, HOUR), fill_width=True) as page:
        gr.Markdown(INTRODUCTION)
        look = gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=300, elem_id="left"):
                file = gr.File(label="Picture", file_types=["image"], height=130, elem_id="picture")
                if examples:
                    example = gr.Dataset(
                        label="Or one of these",
                        components=[gr.Image(visible=False)],
                        samples=[[str(path)] for path in examples],
                        type="index",
                        elem_id="examples",
                    )
                with gr.Column(elem_id="settings"):
                    model = gr.Dropdown(models.names, value=first, label="Model", elem_id="model")
                    method = gr.Dropdown(
                        list(get_args(Method)),
                        value=saved.method,
                        label="Rule of fusion",
                        info="which of two overlapping objects lies in front",
                        elem_id="method",
                    )
                    score = _threshold(
                        "Score threshold", "objects of a lower score are not used", saved.fusion.score_threshold
                    )
                    erase = gr.Checkbox(
                        saved.fusion.unknown_erasing, label="Erase unknown regions", elem_id="erase"
                    )
                    certainty = _threshold(
                        "Unknown threshold",
                        "regions of a lower mean confidence become unknown",
                        saved.fusion.ue_threshold,
                        visible=saved.fusion.unknown_erasing,
                    )
                    with gr.Row(visible=False) as downloads:
                        archive = gr.Button("Save result (zip)", size="sm", min_width=120, elem_id="archive")
                        picture = gr.Button("Save overlay", size="sm", min_width=120, elem_id="overlay")
            with gr.Column(scale=3, min_width=300, elem_id="right"):
                viewer = gr.HTML(
                    html_template=_asset("viewer.html"),
                    css_template=_asset("viewer.css"),
                    js_on_load=_asset("viewer.js"),
                    apply_default_css=False,
                    elem_id="viewer",
                )
        settings: list[Any] = [method, score, erase, certainty]
        handed = gr.JSON(visible="hidden")

        # One at a time and in order, so that an earlier answer never comes after a later one.
        queue: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "trigger_mode": "always_last"}
        hidden: dict[str, Any] = {**queue, "api_visibility": "private"}
        asked, answer = [file, model, *settings], [look, viewer, downloads]
        open_ = partial(_open, models)
        file.upload(open_, asked, answer, api_name="open", **queue)
        file.clear(_nothing, None, answer, **hidden)
        if examples:
            chosen = example.click(lambda index: str(examples[index]), example, file, **hidden)
            chosen.then(open_, asked, answer, **hidden)
        other = model.input(partial(_own_settings, models), model, settings, **hidden)
        other.then(open_, asked, answer, **hidden)
        erase.input(lambda on: gr.Slider(visible=on), erase, certainty, **hidden)
        gr.on(
            [setting.input for setting in settings],
            partial(_fuse_again, models),
            [look, *settings],
            [viewer, downloads],
            api_name="fuse",
            show_progress="hidden",
            **queue,
        )
        for button, make in ((archive, archive_file), (picture, overlay_file)):
            made = button.click(partial(_hand_out, models, make), [look, *settings], handed, **hidden)
            made.then(None, handed, None, js=_asset("save.js"))
    return page


def packaged_pictures() -> list[Path]:
    """Those of `EXAMPLES` that are at hand."""
    found = []
    for package, name in EXAMPLES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None and (path := Path(spec.origin).parent / name).is_file():
            found.append(path)
    return found


def _open(models: Models, path: str | None, model: str, *settings: Any) -> tuple[Upload | None, Any, Any]:
    """A new picture or model: run the network, then fuse."""
    if path is None:
        return _nothing()
    try:
        look = models.look(path, model)
    except RefineError as error:
        return None, {"error": str(error)}, gr.Row(visible=False)
    return look, *_fuse_again(models, look, *settings)


def _nothing() -> tuple[None, None, Any]:
    return None, None, gr.Row(visible=False)


def _fuse_again(models: Models, look: Upload | None, *settings: Any) -> tuple[Any, Any]:
    """Other settings for the same picture."""
    if look is None:
        return gr.skip(), gr.skip()
    try:
        result = models.fuse(look, *_fusion(models, look.model, *settings))
    except RefineError as error:
        return {"error": str(error)}, gr.Row(visible=False)
    return view(look, result), gr.Row(visible=True)


def _hand_out(models: Models, make: Callable[..., dict[str, str]], look: Upload, *settings: Any) -> dict[str, str]:
    return make(look, models.fuse(look, *_fusion(models, look.model, *settings)))


def _fusion(
    models: Models, model: str, method: Method, score: float, erase: bool, certainty: float
) -> tuple[Method, FusionConfig]:
    """A model's own thresholds with those of the page."""
    own = models.load(model).fusion
    return method, replace(own, score_threshold=score, unknown_erasing=erase, ue_threshold=certainty)


def _own_settings(models: Models, model: str) -> tuple[Any, ...]:
    saved = models.load(model)
    own = saved.fusion
    shown = gr.Slider(value=own.ue_threshold, visible=own.unknown_erasing)
    return saved.method, own.score_threshold, own.unknown_erasing, shown


def _threshold(label: str, info: str, value: float, *, visible: bool = True) -> gr.Slider:
    name = label.split()[0].lower()
    return gr.Slider(0, 1, value, step=0.01, label=label, info=info, buttons=[], visible=visible, elem_id=name)


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
