"""Tiny models of the real architectures, with seeded weights, in the format of Hugging Face; and what
plain transformers makes of images and texts with them."""

import functools
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.corpora import public

SIZE, DIMENSIONS = 64, 48
TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TEXT = {**TOWER, "num_attention_heads": 4}
VISION = {**TEXT, "image_size": SIZE, "patch_size": 16}
CORPUS = ["a photo of a cat and a dog", "two children play in the snow", "A red car by the sea."]


def tiny_clip(folder: Path, **settings: Any) -> Path:
    """A CLIP model in `folder`; `settings` replace those of its preprocessor_config.json."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    size = _clip_tokenizer(folder)
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    config = CLIPConfig(
        text_config={**TEXT, "vocab_size": size, "max_position_embeddings": 77, **ids},
        vision_config=VISION,
        projection_dim=DIMENSIONS,
    )
    torch.manual_seed(0)
    CLIPModel(config).eval().save_pretrained(folder)  # type: ignore[no-untyped-call]
    return _preprocessor(
        folder,
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": SIZE},
            "crop_size": {"height": SIZE, "width": SIZE},
            "do_center_crop": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            **settings,
        },
    )


def tiny_siglip(folder: Path, **settings: Any) -> Path:
    """As `tiny_clip`, a SigLIP model whose images are squeezed and whose texts are padded to 64."""
    import torch
    from transformers import SiglipConfig, SiglipModel

    size = _word_tokenizer(folder)
    config = SiglipConfig(
        text_config={**TEXT, "vocab_size": size, "max_position_embeddings": 64, "pad_token_id": 0},
        vision_config=VISION,
    )
    torch.manual_seed(1)
    SiglipModel(config).eval().save_pretrained(folder)  # type: ignore[no-untyped-call]
    return _preprocessor(
        folder,
        {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": SIZE, "width": SIZE},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            **settings,
        },
    )


@functools.lru_cache(maxsize=4)
def _loaded(folder: Path) -> tuple[Any, Any, Any]:
    from transformers import AutoModel, AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    model = AutoModel.from_pretrained(folder).eval()
    is_clip = model.config.model_type == "clip"
    # By name: `AutoImageProcessor` takes torchvision's where that happens to be installed.
    kind: Any = CLIPImageProcessorPil if is_clip else SiglipImageProcessorPil
    return model, AutoTokenizer.from_pretrained(folder), kind.from_pretrained(folder)


def plain_images(folder: Path, images: Sequence[Any]) -> Vectors:
    """The unit vectors float32[n, d] of images of Pillow, one call each, by transformers alone."""
    import torch

    model, _, processor = _loaded(folder)
    with torch.inference_mode():
        rows = [
            model.get_image_features(**processor(images=image, return_tensors="pt")).pooler_output
            for image in images
        ]
    return _unit(torch.cat(rows).numpy())


def plain_texts(folder: Path, texts: Sequence[str]) -> Vectors:
    """As `plain_images`, of texts, which SigLIP was trained to read padded."""
    import torch

    model, tokenizer, _ = _loaded(folder)
    is_clip = model.config.model_type == "clip"
    with torch.inference_mode(), warnings.catch_warnings():
        rows = []
        for text in texts:
            ids = tokenizer(
                [text],
                padding=True if is_clip else "max_length",
                max_length=77 if is_clip else 64,
                truncation=True,
                return_tensors="pt",
            )["input_ids"]
            rows.append(model.get_text_features(input_ids=ids).pooler_output)
    return _unit(torch.cat(rows).numpy())


def _unit(vectors: Any) -> Vectors:
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _clip_tokenizer(folder: Path) -> int:
    """CLIP's own tokenizer where it is at hand, else one of its kind; how many tokens it has."""
    folder.mkdir(parents=True, exist_ok=True)
    own = public("clip_tokenizer")
    if own is not None:
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            (folder / name).write_bytes((own / name).read_bytes())
        return len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    from tokenizers.pre_tokenizers import ByteLevel

    signs = sorted(ByteLevel.alphabet())
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    end = "<|endoftext|>"
    names = {"bos_token": "<|startoftext|>", "eos_token": end, "pad_token": end, "unk_token": end}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return len(tokens)


def _word_tokenizer(folder: Path) -> int:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<pad>", "<eos>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=64,
        padding_side="right",
    ).save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


def _preprocessor(folder: Path, settings: dict[str, Any]) -> Path:
    common = {"do_resize": True, "resample": 3, "do_rescale": True, "do_normalize": True}
    values = {**common, "rescale_factor": 1 / 255, "do_convert_rgb": True, **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder
