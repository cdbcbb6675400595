"""Embeds images and texts into one space on this machine, with models of the families CLIP and SigLIP
in the format of Hugging Face.

A folder in the user's cache belongs to one digest of the model's files: it holds `config.json` and
`tokenizer.json`, and for one version of OpenVINO the graphs `text.xml` and `vision.xml`.
"""

import contextlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path
from tokenizers import Tokenizer

from embedding_pipelines.errors import ProviderError, error_lines
from embedding_pipelines.extras import need
from embedding_pipelines.files import fill_folder
from embedding_pipelines.images import Filter, Resize
from embedding_pipelines.inference import openvino as _openvino
from embedding_pipelines.inference import torch as _torch
from embedding_pipelines.inference.backend import Array, Backend, Precision, TokenBatch
from embedding_pipelines.inference.batching import Batching
from embedding_pipelines.inference.conversion import fill_graphs, load_tokenizer
from embedding_pipelines.inference.encoder import packed_batches, token_batches
from embedding_pipelines.inference.weights import folder_sha256, revision_sha256, weights_sha256
from embedding_pipelines.once import once
from embedding_pipelines.schemas import digest
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

CACHE_LAYOUT = "1"  # raise it when the files in the cache change
CONFIG = "config.json"
Tower = Literal["text", "vision"]

# Images that are computed together. Padding does not exist, so more only take more memory.
BATCH_IMAGES: dict[str, int] = {"cuda": 128, "mps": 32, "cpu": 8}
# Of one request: what a killed run repeats, and what is decoded ahead. 9.6 MB at 224 x 224.
REQUEST_IMAGES, ACCELERATOR_REQUEST_IMAGES = 64, 512

# What transformers assumes where `preprocessor_config.json` says nothing, by `model_type`.
_CENTRED: dict[str, Any] = {
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "do_center_crop": False,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_center_crop": True,
    },
    "siglip": _CENTRED,
}
SIZE = 224  # of both families, where the file says nothing
FILTERS: tuple[Filter, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
NESTED = "0_CLIPModel"  # where sentence-transformers keeps a CLIP model's own files


@dataclass(frozen=True)
class ClipConfig:
    """What a model's own files say of its vectors and of what it takes."""

    revision: str
    family: str  # "clip" or "siglip"
    dimensions: int
    max_tokens: int
    padded_tokens: int  # each text is padded to so many; 0: to the longest of its batch
    pad_id: int
    pads_left: bool
    tokenizer: str  # digest of its definition
    size: int  # of the square of pixels
    crop: bool
    filter: Filter
    scale: float  # a sample s becomes (s * scale - mean) / std
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def resize(self) -> Resize:
        return Resize(self.size, self.crop, self.filter)

    @property
    def pixels(self) -> str:
        """How samples become the model's input, for the identity of vectors."""
        way = "crop" if self.crop else "squeeze"
        numbers = " ".join(f"{number:.8g}" for number in (self.scale, *self.mean, *self.std))
        return f"{self.size} {way} {self.filter} {numbers}"


@dataclass(frozen=True)
class ImageBatch:
    """Squares of pixels, as `Rows` of a backend."""

    pixels: NDArray[np.uint8]  # [n, size, size, 3]

    @property
    def lengths(self) -> Array:
        return np.ones(len(self.pixels), np.int64)

    def take(self, rows: Array) -> Self:
        return type(self)(self.pixels[rows])

    def padded(self, multiple: int = 1) -> tuple[NDArray[Any], ...]:
        return (np.ascontiguousarray(self.pixels),)


class ClipEngine:
    """One model, for any number of threads. Each tower is loaded when it is first to embed.

    `device` is "auto", "cpu", "mps", "cuda" or one of several, "cuda:1". `cores`: of the processor,
    how many it keeps busy; None: all.
    """

    def __init__(
        self,
        folder: Path,
        precision: Precision,
        device: str = "auto",
        cores: int | None = None,
    ) -> None:
        self.folder = folder / NESTED if (folder / NESTED).is_dir() else folder
        self.precision, self.device, self._cores = precision, device, cores
        self._name = folder.name
        self._cache, self.config = describe(self.folder)
        self._texts = Batching(self._name, "tokens", _single_text)
        self._images = Batching(self._name, "images", _single_image)
        self._replacing = threading.Lock()

    @property
    def accelerator(self) -> str | None:
        """What torch computes on; None: OpenVINO on the processor. Raises ProviderError if this
        machine does not have the device."""
        return _torch.choose_device(self.device, self._name)

    @property
    def batch_tokens(self) -> int:
        """Of texts, per batch at most, padding included."""
        return self._texts.batch_size(self.text)

    @property
    def busy_tokens(self) -> int:
        """Of texts; as `Batching.busy_size`."""
        return self._texts.busy_size(self.text)

    @property
    def computed_by(self) -> str:
        """Library, device and precision of the last vectors."""
        towers = [vars(self)[name] for name in get_args(Tower) if name in vars(self)]
        return f"{towers[-1].name}, {towers[-1].precision}" if towers else ""

    @once
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self._cache)

    @once
    def _cutting_tokenizer(self) -> Tokenizer:
        config, tokenizer = self.config, load_tokenizer(self._cache)
        tokenizer.enable_truncation(config.max_tokens)
        if config.padded_tokens:
            tokenizer.enable_padding(
                direction="left" if config.pads_left else "right",
                pad_id=config.pad_id,
                length=config.padded_tokens,
            )
        return tokenizer

    @once
    def text(self) -> Backend:
        """The text tower on its device."""
        return self._backend("text")

    @once
    def vision(self) -> Backend:
        """The vision tower on its device."""
        return self._backend("vision")

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """float32[len(texts), d] of unit length, each text cut at the model's limit."""
        encodings = self._cutting_tokenizer.encode_batch_fast(list(texts))
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
        return self._embed("text", TokenBatch(flat, lengths, pad_id=self.config.pad_id))

    def embed_images(self, pixels: NDArray[np.uint8]) -> Vectors:
        """float32[n, d] of unit length, of squares of pixels uint8[n, size, size, 3]."""
        size = self.config.size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, 3):
            raise ValueError(
                f"{self._name} takes pixels uint8[n, {size}, {size}, 3]; these are "
                f"{pixels.dtype}{list(pixels.shape)}. Make them by images.prepare."
            )
        return self._embed("vision", ImageBatch(pixels))

    def _embed(self, tower: Tower, rows: TokenBatch | ImageBatch) -> Vectors:
        vectors = np.empty((len(rows.lengths), self.config.dimensions), np.float32)
        backend = self._compute(tower, rows, vectors, getattr(self, tower))
        if backend.precision == "float16" and not np.isfinite(vectors).all():
            backend = self._compute(tower, rows, vectors, self._replace(tower, backend))
        if backend.precision != "float32":
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def _compute(
        self, tower: Tower, rows: TokenBatch | ImageBatch, vectors: Vectors, backend: Backend
    ) -> Backend:
        if tower == "text":
            self._texts.compute(rows, vectors, backend, token_batches)
        else:
            self._images.compute(rows, vectors, backend, packed_batches)
        return backend

    def _replace(self, tower: Tower, backend: Backend) -> Backend:
        """A backend in place of one in float16 whose numbers grow too large; once for all threads."""
        with self._replacing:
            if getattr(self, tower) is backend:
                precision = _torch.wider_precision()
                words = "%s: its numbers are too large for float16; from now on in %s"
                log.warning(words, self._name, precision)
                other = ClipTorch(self.folder, self.config, tower, str(self.accelerator), precision)
                vars(self)[tower] = other
            current: Backend = getattr(self, tower)
            return current

    def _backend(self, tower: Tower) -> Backend:
        folder, config, device = self.folder, self.config, self.accelerator
        if device is not None:
            return ClipTorch(folder, config, tower, device, self.precision)

        def save(draft: Path) -> None:
            model = load(folder)
            for name in get_args(Tower):
                module, example = module_of(model, config, name), _example(config, name)
                _openvino.save_module(module, (example,), draft / f"{name}.xml")

        graphs, problem = fill_graphs(self._cache, save)
        if problem:
            words = "%s: torch runs this model, OpenVINO cannot: %s"
            log.warning(words, self._name, problem)
            return ClipTorch(folder, config, tower, "cpu", self.precision, self._cores)
        graph, precision, cores = graphs / f"{tower}.xml", self.precision, self._cores
        if tower == "text":
            return _openvino.OpenVino(graph, precision, _one_text(config), cores=cores)
        one = ImageBatch(np.zeros((1, config.size, config.size, 3), np.uint8))
        size = BATCH_IMAGES["cpu"]
        return _openvino.OpenVino(graph, precision, one, size, pads=False, cores=cores)


class ClipTorch(_torch.TorchBackend):
    """One tower on torch. The transformer computes in `precision`, what is before and behind it in
    float32."""

    def __init__(
        self,
        folder: Path,
        config: ClipConfig,
        tower: Tower,
        device: str,
        precision: Precision | Literal["float16"],
        cores: int | None = None,
    ) -> None:
        torch = need("torch", "local")
        super().__init__(device, cores)
        if precision == "auto":
            precision = "float16" if self._kind == "cuda" else "float32"
        self.precision, self.pads = precision, tower == "text"
        self.batch_tokens = (_torch.BATCH_TOKENS if self.pads else BATCH_IMAGES)[self._kind]
        model = load(folder, getattr(torch, precision))
        other = "vision_model" if tower == "text" else "text_model"
        setattr(model, other, None)  # it takes no memory of the device
        self._module = module_of(model, config, tower).to(device)

    def arrays(self, batch: TokenBatch | ImageBatch) -> tuple[NDArray[Any], ...]:
        return batch.padded(_torch.WIDTH_MULTIPLE if self._kind == "cuda" else 1)[:1]

    def forward(self, tensors: Sequence["Tensor"], batch: TokenBatch | ImageBatch) -> "Tensor":
        vectors: Tensor = self._module(*tensors)
        return vectors


def describe(folder: Path) -> tuple[Path, ClipConfig]:
    """A model's folder in the cache and its configuration. Raises ProviderError for a folder that
    holds no model of these families."""
    weights_sha256(folder)  # raises without weights, before anything is loaded
    name = f"clip-{folder_sha256(folder)[:32]}-{CACHE_LAYOUT}"
    cache = user_cache_path("embedding-pipelines") / name
    if not (cache / CONFIG).exists():
        with fill_folder(cache, CONFIG) as draft:
            tokenizer = _load_tokenizer(folder)
            tokenizer.backend_tokenizer.save(str(draft / "tokenizer.json"))
            config = _describe(folder, tokenizer, load_tokenizer(draft))
            (draft / CONFIG).write_text(json.dumps(asdict(config), indent=2), encoding="utf-8")
    values: dict[str, Any] = json.loads((cache / CONFIG).read_text(encoding="utf-8"))
    values |= {name: tuple(values[name]) for name in ("mean", "std")}
    return cache, ClipConfig(**values)


def load(folder: Path, dtype: Any = None) -> Any:
    """The model of transformers, of torch's `dtype` (float32 by default), on the processor. Raises
    ProviderError for files of no model."""
    torch, library = need("torch", "local"), need("transformers", "local")
    with _readable_errors(folder):
        model = library.AutoModel.from_pretrained(
            str(folder), local_files_only=True, dtype=dtype or torch.float32
        )
    return model.eval()


def _load_tokenizer(folder: Path) -> Any:
    library = need("transformers", "local")
    with _readable_errors(folder):
        tokenizer = library.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ProviderError(
            f"{folder}: the model's tokenizer is in the format of sentencepiece alone. Put its "
            "tokenizer.json beside it, which newer commits of the model's repository hold."
        )
    return tokenizer


def _describe(folder: Path, source: Any, tokenizer: Tokenizer) -> ClipConfig:
    """`source` is the tokenizer as transformers loads it."""
    library = need("transformers", "local")
    with _readable_errors(folder):
        config = library.AutoConfig.from_pretrained(str(folder), local_files_only=True)
    family = config.model_type
    if family not in DEFAULTS:
        wide = " It takes images of any size; name one of a fixed size." * (family == "siglip2")
        raise ProviderError(
            f"{folder}: model_type is {family!r}. The provider clip runs models of the types "
            f"{' and '.join(DEFAULTS)}.{wide}"
        )
    is_clip = family == "clip"
    text, vision = config.text_config, config.vision_config
    most = int(text.max_position_embeddings)
    pad_id = source.pad_token_id
    settings = DEFAULTS[family] | _preprocessor(folder)
    size, crop = _square(folder, settings, int(vision.image_size))
    rescales, normalizes = settings.get("do_rescale", True), settings.get("do_normalize", True)
    return ClipConfig(
        revision=revision_sha256(folder),
        family=family,
        dimensions=int(config.projection_dim if is_clip else vision.hidden_size),
        max_tokens=min(most, int(source.model_max_length)),
        padded_tokens=0 if is_clip else most,
        pad_id=int(text.pad_token_id or 0) if pad_id is None else int(pad_id),
        pads_left=source.padding_side == "left",
        tokenizer=digest(tokenizer.to_str().encode()).hex(),
        size=size,
        crop=crop,
        filter=FILTERS[int(settings.get("resample", FILTERS.index("bicubic")))],
        scale=float(settings.get("rescale_factor", 1 / 255)) if rescales else 1.0,
        mean=_three(settings["image_mean"] if normalizes else [0.0]),
        std=_three(settings["image_std"] if normalizes else [1.0]),
    )


def _preprocessor(folder: Path) -> dict[str, Any]:
    """What the model's files say of its pixels; newer ones keep it beside the tokenizer's part."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if path.is_file():
            values = json.loads(path.read_text(encoding="utf-8"))
            values = values.get("image_processor", values)
            return {key: value for key, value in values.items() if value is not None}
    raise ProviderError(
        f"{folder}: there is no preprocessor_config.json, which says how images are resized and "
        "normalized. Put the model's own beside its weights."
    )


def _square(folder: Path, settings: Mapping[str, Any], expected: int) -> tuple[int, bool]:
    """The side of the square, and whether it is cut out. Raises ProviderError for what `Resize` does
    not do."""
    size, cut = settings.get("size", SIZE), settings.get("crop_size", SIZE)
    sides = size if isinstance(size, dict) else {"any": size}
    crops = bool(settings["do_center_crop"]) and "height" not in sides
    cuts = set(cut.values() if isinstance(cut, dict) else [cut]) if crops else {expected}
    fits = {*sides.values(), *cuts} == {expected} and settings.get("do_resize", True)
    if not fits or ("shortest_edge" in sides and not crops):
        raise ProviderError(
            f"{folder}: the model takes squares of {expected} pixels, and its preprocessor resizes "
            f"to {size} and cuts {cut if crops else 'nothing'}. Only a resize to the square, or of "
            "the shorter side with a cut in the middle, is done here."
        )
    return expected, crops


def _three(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values * 3 if len(values) == 1 else values)
    return red, green, blue


@contextlib.contextmanager
def _readable_errors(folder: Path) -> Iterator[None]:
    quiet = need("transformers.utils.logging", "local")
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        words, cause = error_lines(error)[0], error.__cause__
        while cause is not None and isinstance(error, ImportError):  # whose text hides the reason
            words, cause = error_lines(cause)[0], cause.__cause__
        if "torchvision" in words:
            words += ". The torchvision that is installed does not fit torch: uninstall it, or "
            words += "install one that does. Nothing here needs it."
        raise ProviderError(f"{folder}: transformers cannot load this model: {words}") from error


def module_of(model: Any, config: ClipConfig, tower: Tower) -> Any:
    """A module of torch from token ids int64[n, width], or pixels uint8[n, size, size, 3], to
    vectors float32[n, d] of unit length."""
    torch = need("torch", "local")
    unit = torch.nn.functional.normalize

    class Text(torch.nn.Module):  # type: ignore[name-defined, misc]
        """Without a mask: what is padded stands behind the token that CLIP reads, and is read by
        SigLIP as in its training."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: "Tensor") -> "Tensor":
            vectors = self.model.get_text_features(input_ids=tokens).pooler_output
            result: Tensor = unit(vectors.float(), dim=-1)
            return result

    class Vision(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.register_buffer("mean", torch.tensor(config.mean, dtype=torch.float32))
            self.register_buffer("std", torch.tensor(config.std, dtype=torch.float32))

        def forward(self, pixels: "Tensor") -> "Tensor":
            samples = (pixels.float() * config.scale - self.mean) / self.std
            inputs = samples.permute(0, 3, 1, 2).to(self.model.dtype)
            vectors = self.model.get_image_features(pixel_values=inputs).pooler_output
            result: Tensor = unit(vectors.float(), dim=-1)
            return result

    return (Text() if tower == "text" else Vision()).eval()


def _example(config: ClipConfig, tower: Tower) -> "Tensor":
    torch = need("torch", "local")
    if tower == "vision":
        return torch.zeros(2, config.size, config.size, 3, dtype=torch.uint8)  # type: ignore[no-any-return]
    width = config.padded_tokens or min(8, config.max_tokens)
    return torch.full((2, width), config.pad_id, dtype=torch.long)  # type: ignore[no-any-return]


def _one_text(config: ClipConfig) -> TokenBatch:
    width = config.padded_tokens or 1
    return TokenBatch(np.full(width, config.pad_id, np.int64), np.array([width]))


def _single_text(tokens: int) -> tuple[str, str]:
    return f"a single text of {tokens} tokens", "Free some."


def _single_image(_: int) -> tuple[str, str]:
    return "a single image", "Free some, or name a smaller model."
