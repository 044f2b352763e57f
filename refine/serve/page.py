"""Layout of the Gradio page, and the events of its components."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from starlette.middleware import Middleware

from refine.checkpoint.find import shipped_models
from refine.errors import RefineError
from refine.fusion.config import Method
from refine.serve.access import SameHost, is_loopback
from refine.serve.actions import Actions
from refine.serve.models import Models

EXAMPLES = (
    ("Micrograph", "mahotas", "demos/data/nuclear.png", "nuclei"),
    ("Cup of coffee", "skimage", "data/coffee.png", "photographs"),
    ("Cat", "skimage", "data/chelsea.png", "photographs"),
)
"""Example images of other packages, offered if these are installed: caption, package, file, model."""

MAX_FILE = "200mb"
"""Maximum size of an uploaded file."""

WAITING = 32
"""Maximum number of waiting requests; further ones are rejected."""

AT_ONCE = 2
"""Number of requests processed in parallel."""

QUEUE: dict[str, Any] = {
    "concurrency_id": "work",
    "concurrency_limit": AT_ONCE,
    "trigger_mode": "always_last",
}
"""Options of all events; they share one queue, in which a newer event replaces a waiting one of its kind."""

HIDDEN: dict[str, Any] = {**QUEUE, "api_visibility": "private"}
"""Options of events that are not part of the page's API."""

HOUR = 3600

HERE = Path(__file__).parent

INTRODUCTION = """# refine
Every pixel gets a class, and every countable object its own id. Drop an image, choose a model that fits it, then
point at the segments. Images stay on the computer that serves this page and are deleted when you leave."""


def serve(models: Models, host: str, port: int, auth: tuple[str, str] | None = None) -> None:
    """Serve the page until interrupted.

    Args:
        models: selectable models.
        host: address to listen on.
        port: TCP port.
        auth: required user name and password; None allows everybody who can reach the address.

    Raises:
        RefineError: the address cannot be used.
    """
    if auth is None and not is_loopback(host):
        print(
            f"refine: warning: everybody who can reach {host}:{port} can use this page; give --auth USER:PASSWORD "
            f"to require a password",
            file=sys.stderr,
        )
    print("starting …", flush=True)
    with tempfile.TemporaryDirectory(prefix="refine_uploads_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when the page is built
        page = build(models, folder)
        launch(page, host, port, auth)
        print(f"open {page.local_url} in a browser; press Ctrl-C to stop", flush=True)
        try:
            while True:
                time.sleep(HOUR)
        finally:
            page.close()


def launch(page: gr.Blocks, host: str, port: int, auth: tuple[str, str] | None = None) -> None:
    """Start the page in background threads; `page.close()` stops it.

    Raises:
        RefineError: the address cannot be used.
    """
    system = ("system-ui", "sans-serif")
    theme = gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=system, font_mono=("monospace",))
    # Hints and placeholders of the default theme have too little contrast.
    theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")
    theme.set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300")
    try:
        page.queue(max_size=WAITING).launch(
            server_name=host,
            server_port=port,
            auth=auth,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            max_file_size=MAX_FILE,
            allowed_paths=[str(path) for _, path, _ in packaged_images()],
            footer_links=[],
            theme=theme,
            css=_asset("page.css"),
            app_kwargs={"middleware": [Middleware(SameHost)]},
        )
    except OSError as error:
        raise RefineError(f"{host}:{port}: cannot be served; choose another --port or --host") from error


def build(models: Models, folder: str | Path) -> gr.Blocks:
    """Build the page without serving it.

    Args:
        models: selectable models.
        folder: folder of uploaded files.
    """
    examples = packaged_images()
    actions = Actions(models, folder, [path for _, path, _ in examples])
    with gr.Blocks(title="refine", analytics_enabled=False, delete_cache=(HOUR, HOUR), fill_width=True) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=300, elem_id="left"):
                file = gr.File(label="Image", file_types=["image"], height=130, elem_id="image")
                with gr.Row(elem_id="examples"):
                    buttons = [
                        gr.Button(caption, icon=str(path), size="sm", min_width=90) for caption, path, _ in examples
                    ]
                with gr.Column(elem_id="settings"):
                    model = gr.Dropdown(
                        models.names,
                        value=models.first,
                        label="Model",
                        info="for the kind of image",
                        elem_id="model",
                    )
                    settings = _fusion_settings()
                    with gr.Row(visible=False) as downloads:
                        archive = gr.Button("Save result (zip)", size="sm", min_width=120, elem_id="archive")
                        drawn = gr.Button("Save overlay", size="sm", min_width=120, elem_id="overlay")
            with gr.Column(scale=3, min_width=300, elem_id="right"):
                viewer = gr.HTML(
                    html_template=_asset("viewer.html"),
                    css_template=_asset("viewer.css"),
                    js_on_load=_asset("viewer.js"),
                    apply_default_css=False,
                    elem_id="viewer",
                )
        download = gr.JSON(visible="hidden")

        shown = [viewer, downloads]
        opened: dict[str, Any] = {"fn": actions.open, "inputs": [file, model, *settings], "outputs": shown}
        defaults: dict[str, Any] = {"fn": actions.own_settings, "inputs": model, "outputs": settings}
        file.upload(**opened, api_name="open", **QUEUE)
        file.clear(actions.close, None, shown, **HIDDEN)
        for button, (_, path, name) in zip(buttons, examples, strict=True):
            clicked = button.click(partial(_choose, str(path), name), model, [file, model], **HIDDEN)
            clicked.then(**defaults, **HIDDEN).then(**opened, **HIDDEN)
        model.input(**defaults, **HIDDEN).then(**opened, **HIDDEN)
        page.load(**defaults, **HIDDEN)
        changed = [setting.input for setting in settings]
        gr.on(changed, actions.fuse, settings, shown, api_name="fuse", show_progress="hidden", **QUEUE)
        for button, action in ((archive, actions.save_archive), (drawn, actions.save_overlay)):
            button.click(action, settings, download, **HIDDEN).then(None, download, None, js=_asset("save.js"))
        page.unload(actions.leave)
    return page


def packaged_images() -> list[tuple[str, Path, str]]:
    """List the installed images of `EXAMPLES`: caption, path, model."""
    found = []
    for caption, package, name, model in EXAMPLES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None and (path := Path(spec.origin).parent / name).is_file():
            found.append((caption, path, model))
    return found


def _choose(path: str, fitting: str, model: str | None) -> tuple[str, str | None]:
    """Return an example image and its model if that one is shipped, else the selected model."""
    return path, fitting if fitting in shipped_models() else model


def _fusion_settings() -> list[Any]:
    """Add rule, score threshold, erasing and its threshold to the page, in the order of `Actions.fuse`."""
    method = gr.Dropdown(list(get_args(Method)), label="Fusion rule", elem_id="method")
    score = _threshold("Score threshold", "minimum score of an object")
    erase = gr.Checkbox(label="Erase unknown regions", elem_id="erase")
    certainty = _threshold("Unknown threshold", "minimum mean confidence of a region")
    erase.input(lambda on: gr.Slider(visible=on), erase, certainty, **HIDDEN)
    return [method, score, erase, certainty]


def _threshold(label: str, info: str) -> gr.Slider:
    name = label.split()[0].lower()
    return gr.Slider(0, 1, 0.5, step=0.01, label=label, info=info, buttons=[], elem_id=name)


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
