"""Tiny, randomly initialised models of transformers, in the layout of the Hugging Face Hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from refine.checkpoint.convert.convert import COCO

COCO_LABELS = [category["name"] for category in json.loads(COCO.read_text())]
SWIN = {
    "image_size": 32,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 1, 1],
    "window_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
DECODER = {"hidden_dim": 32, "num_attention_heads": 1, "num_queries": 12, "encoder_feedforward_dim": 8}
ASPECT = {"shortest_edge": 64, "longest_edge": 96}


def mask2former(**config: Any) -> tuple[Any, Any]:
    import transformers as t

    swin = t.SwinConfig(**SWIN)
    sizes = {"feature_size": 32, "mask_feature_size": 32, "dim_feedforward": 8}
    layers = {"encoder_layers": 1, "decoder_layers": 2}
    made = t.Mask2FormerConfig(backbone_config=swin, **DECODER, **sizes, **layers, **config)
    return t.Mask2FormerForUniversalSegmentation(made), t.Mask2FormerImageProcessor(size=ASPECT, size_divisor=0)


def maskformer(**config: Any) -> tuple[Any, Any]:
    import transformers as t

    parts = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1}
    decoder = t.DetrConfig(d_model=32, encoder_ffn_dim=8, decoder_ffn_dim=8, num_queries=12, **parts)
    made = t.MaskFormerConfig(
        fpn_feature_size=32,
        mask_feature_size=32,
        backbone_config=t.SwinConfig(**SWIN),
        decoder_config=decoder,
        **config,
    )
    return t.MaskFormerForInstanceSegmentation(made), t.MaskFormerImageProcessor(size=ASPECT)


def oneformer(**config: Any) -> tuple[Any, Any]:
    import transformers as t

    text = {"width": 8, "num_layers": 1, "context_length": 7, "vocab_size": 600, "n_ctx": 2}
    made = t.OneFormerConfig(
        backbone_config=t.SwinConfig(**SWIN),
        conv_dim=32,
        mask_dim=32,
        dim_feedforward=8,
        encoder_layers=1,
        decoder_layers=3,
        query_dec_layers=1,
        task_seq_len=7,
        max_seq_len=7,
        **{f"text_encoder_{name}": value for name, value in text.items()},
        **DECODER,
        **config,
    )
    words = [f"{letter}{end}" for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {word: n for n, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = t.CLIPTokenizer(vocab=vocabulary, merges=[])
    images = t.OneFormerImageProcessor(size=ASPECT)
    images.class_info_file = "panoptic.json"  # as published; only training needs the file
    return t.OneFormerForUniversalSegmentation(made), t.OneFormerProcessor(images, tokenizer, 7, 7)


def eomt(**config: Any) -> tuple[Any, Any]:
    import transformers as t

    sizes = {"hidden_size": 8, "image_size": 64, "patch_size": 16}
    layers = {"num_hidden_layers": 4, "num_attention_heads": 1, "mlp_ratio": 1, "num_blocks": 2}
    made = t.EomtConfig(num_queries=12, num_upscale_blocks=1, **sizes, **layers, **config)
    size = {"shortest_edge": 64, "longest_edge": 64}
    return t.EomtForUniversalSegmentation(made), t.EomtImageProcessor(size=size, do_pad=True)


def eomt_semantic(**config: Any) -> tuple[Any, Any]:
    model, images = eomt(**config)
    images.size, images.do_pad, images.do_split_image = {"shortest_edge": 64, "longest_edge": None}, False, True
    return model, images


def detr(**config: Any) -> tuple[Any, Any]:
    import transformers as t

    stages = [f"stage{n}" for n in range(1, 5)]
    backbone = t.ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_features=stages
    )
    made = t.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        num_queries=12,
        **config,
    )
    return t.DetrForSegmentation(made), t.DetrImageProcessor(size=ASPECT)


def segformer(**config: Any) -> tuple[Any, Any]:
    import transformers as t

    layers = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4}
    made = t.SegformerConfig(**layers, decoder_hidden_size=8, **config)
    images = t.SegformerImageProcessor(size={"height": 64, "width": 64})
    return t.SegformerForSemanticSegmentation(made), images


def upernet(**config: Any) -> tuple[Any, Any]:
    import transformers as t

    made = t.UperNetConfig(backbone_config=t.SwinConfig(**SWIN), hidden_size=8, use_auxiliary_head=False, **config)
    return t.UperNetForSemanticSegmentation(made), t.SegformerImageProcessor(size={"height": 64, "width": 64})


QUERIES = [mask2former, maskformer, oneformer, eomt, detr]
PIXELS = [segformer, upernet]


def saved(folder: Path, make: Callable[..., tuple[Any, Any]], labels: list[str] = COCO_LABELS) -> Path:
    """Save a random model whose classes vary between queries and pixels; return the folder."""
    torch.manual_seed(3)
    model, processor = make(id2label=dict(enumerate(labels)), label2id={name: n for n, name in enumerate(labels)})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # far from the constant output of a new network
                parameter.normal_(std=1.5 if "class" in name else 0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
