"""A trained model on one's own images: `fiber.load(folder)` gives a predictor with one method per task.

A model at image level matches, retrieves, embeds, classifies, captions and answers, as far as its heads go; one at
region level grounds, refers and detects. Every method takes one image or any iterable of them (paths, PIL images,
arrays) and returns a list with one entry per image. Boxes are [x0, y0, x1, y1] in pixels of the upright original.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fiber.backbone.states import ImageState, TextState
from fiber.coarse.decoding import Caption, SpecialTokens, beam_search, greedy, nucleus
from fiber.coarse.model import CoarseModel
from fiber.data.text import encode
from fiber.images.resize import resize_pil
from fiber.predict.base import Predictor, TaskError, at_least, listed
from fiber.predict.image_index import ImageIndex, build_index, cache_file, index_model, read_index
from fiber.predict.listing import ImageList
from fiber.predict.sources import ImageError, ImageSource, Prepared
from fiber.predict.stream import in_groups
from fiber.processor import pack
from fiber.tasks.classification import HEAD, prompt_classifier

# ---------------------------------------------------------------------------------------------- image level


@dataclass(frozen=True)
class Match:
    """How well a text fits an image: `probability` of the matching head (0..1; None without one) and `similarity`
    (cosine) of the contrastive features (None without them)."""

    probability: float | None
    similarity: float | None


@dataclass(frozen=True)
class Scored:
    """A text (caption, answer, class) or path with its score: mean log-probability of a caption's tokens, probability
    of an answer or a class, similarity or matching probability of a retrieved image."""

    text: str
    score: float


class CoarsePredictor(Predictor):
    """Use of a model at image level."""

    model: CoarseModel

    @property
    def width(self) -> int:
        """H of the contrastive features."""
        return int(self.model.heads.contrastive.image_pooler.out_features)

    def match(self, images: ImageSource | Iterable[ImageSource], text: str) -> list[Match]:
        """Whether `text` describes each image."""
        self.require("match")
        words = self._text([text])
        text_feature = self.model.text_embedding(words)[0] if "retrieve" in self.tasks else None

        def compute(images: list[Prepared]) -> list[Match]:
            image = self._prefix(images)
            logits = self.model.match_logits(image, words[[0] * len(image)])
            similarity: list[float | None] = [None] * len(image)
            if text_feature is not None:
                similarity = (self.model.image_embedding(image) @ text_feature).tolist()
            return [Match(p, s) for p, s in zip(logits.softmax(-1)[:, 1].tolist(), similarity, strict=True)]

        return self._each(images, compute)

    def caption(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        method: Literal["beam", "greedy", "nucleus"] = "beam",
        beams: int = 5,
        top_p: float = 0.9,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[list[Scored]]:
        """Captions of each image, best first: `beams` of them by beam search, one by the other methods. On a CPU the
        first call lays out the decoder's weights a second time, for speed (FIBER-B: 0.6 GB)."""
        self.require("caption")
        at_least("beams", beams, 1)
        if method not in ("beam", "greedy", "nucleus"):
            raise ValueError(f"method {method!r} is not one of beam, greedy, nucleus")
        special_tokens, length = SpecialTokens.of(self.tokenizer), self.config.max_text
        pack([self.model.backbone.text, self.model.backbone.fusion, self.model.heads])
        draw = {"top_p": top_p, "temperature": temperature}
        generator = torch.Generator(self.device).manual_seed(seed)

        def compute(images: list[Prepared]) -> list[list[Scored]]:
            image = self.model.backbone.image_tail(self._prefix(images))
            if method == "beam":
                found = beam_search(self.model, image, special_tokens, length, beams)
            elif method == "greedy":
                found = [[caption] for caption in greedy(self.model, image, special_tokens, length)]
            else:
                drawn = nucleus(self.model, image, special_tokens, length, generator=generator, **draw)
                found = [[caption] for caption in drawn]
            return [[self._spell(caption) for caption in captions] for captions in found]

        return self._each(images, compute)

    def answer(self, images: ImageSource | Iterable[ImageSource], question: str, top: int = 5) -> list[list[Scored]]:
        """The `top` likeliest answers to a question about each image."""
        self.require("answer")
        at_least("top", top, 1)
        self._require_answers("question")
        words = self._text([question])

        def compute(images: list[Prepared]) -> list[list[Scored]]:
            image = self._prefix(images)
            cls = self.model.fuse(image, words[[0] * len(image)]).cls
            return _best(self.model.heads.classifiers["vqa"](cls).float().sigmoid(), self.answers, top)

        return self._each(images, compute)

    def classify(
        self, images: ImageSource | Iterable[ImageSource], classes: Sequence[str] | None = None, top: int = 5
    ) -> list[list[Scored]]:
        """The `top` likeliest classes of each image, their probabilities adding up to 1 over all classes.

        classes: any names, compared by the contrastive features of prompts ("a photo of a NAME.", ...) without any
        training; default: those that the model's classification head was trained on, by that head.
        """
        self.require("classify")
        at_least("top", top, 1)
        trained = HEAD in self.model.heads.classifiers
        if classes is None:
            if not trained:
                raise TaskError("this model has no classification head: say which classes to choose from")
            self._require_answers("classification")
            names = self.answers
        else:
            self.require("retrieve")
            names = list(dict.fromkeys(listed("classes", classes)))
            if any(not name.strip() for name in names) or not names:
                raise ValueError("a class name is empty")
            vectors = prompt_classifier(self.model, names, self.tokenizer, self.config.max_text)

        def compute(images: list[Prepared]) -> list[list[Scored]]:
            image = self._prefix(images)
            if classes is None:
                pooled = self.model.heads.contrastive.image(self.model.backbone.finish_image(image))[1]
                logits = self.model.heads.classifiers[HEAD](pooled).float()
            else:
                logits = self.model.image_embedding(image) @ vectors.T / self.model.heads.temperature()
            return _best(logits.softmax(-1), names, top)

        return self._each(images, compute)

    def index(
        self, images: str | Path | Iterable[str | Path], file: str | Path | None = None, *, progress: bool = False
    ) -> ImageIndex:
        """The contrastive features of the images of folders, tars and files, kept in `file` (default: in the user's
        cache, by place and model) and used again: only new and changed images are encoded. A run that was killed goes
        on where it was.

        Images that cannot be read are left out and named in `unreadable`. Raises ImageError where none can be read,
        ValueError where `file` is something else.
        """
        self.require("embed")
        files = ImageList([images] if isinstance(images, str | Path) else images)
        out = Path(file) if file else cache_file(files.place, index_model(self))
        report = build_index(self, files, out, progress=progress)
        return read_index(out, files, report)

    def index_of(self, paths: Iterable[str | Path]) -> ImageIndex:
        """As `index`, of few images: nothing is kept."""
        self.require("embed")
        files = ImageList(paths)
        names, found, faults = list[str](), list[Tensor](), list[str]()
        for group in in_groups(self.stream(files), self.batch):
            faults += [str(image) for _, image in group if isinstance(image, ImageError)]
            images = [image for _, image in group if isinstance(image, Prepared)]
            names += [file.relative for file, image in group if isinstance(image, Prepared)]
            found += self.fitting(images, self.features) if images else ()
        if not found:
            raise ImageError(
                faults[0] if len(faults) == 1 else f"none of {len(faults)} images could be read: {faults[0]}"
            )
        return ImageIndex(files, names, torch.stack(found), len(found), faults)

    def retrieve(self, index: ImageIndex, text: str, top: int = 5, rerank: int = 0) -> list[Scored]:
        """The `top` images of an index for a text, best first, by cosine similarity; with `rerank` > 0 the best so
        many are ordered again by the probability of the matching head, the others follow with their similarity.
        Raises ValueError for `top` < 1 or `rerank` < 0."""
        self.require("retrieve")
        at_least("top", top, 1)
        at_least("rerank", rerank, 0)
        similarity = index.features @ self.embed_texts([text])[0]
        order = similarity.argsort(descending=True, stable=True)[: max(top, rerank)].tolist()
        files = [index.files.file(index.paths[i]) for i in order]
        found = [Scored(file.name, float(similarity[i])) for file, i in zip(files, order, strict=True)]
        if rerank:
            self.require("match")
            matched = self.match(files[:rerank], text)
            again = [Scored(f.text, m.probability or 0.0) for f, m in zip(found[:rerank], matched, strict=True)]
            found = sorted(again, key=lambda scored: -scored.score) + found[rerank:]
        return found[:top]

    def embed_images(self, images: ImageSource | Iterable[ImageSource]) -> Tensor:
        """Contrastive features (B,H) fp32 of unit length, on the CPU, of any number of images. Raises ImageError."""
        self.require("embed")
        found = self._each(images, self.features)
        return torch.stack(found) if found else torch.zeros(0, self.width)

    def features(self, images: list[Prepared]) -> Sequence[Tensor]:
        """Contrastive features (H,) fp32 of unit length, on the CPU, of one batch of prepared images."""
        return self.model.image_embedding(self._prefix(images)).cpu().unbind()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Contrastive features (B,H) fp32 of unit length, on the CPU. Raises ValueError for an empty text."""
        self.require("embed")
        texts = listed("texts", texts)
        if not texts:
            return torch.zeros(0, self.width)
        groups = [texts[i : i + 256] for i in range(0, len(texts), 256)]
        return torch.cat([self.model.text_embedding(self._text(group)).cpu() for group in groups])

    def _text(self, texts: Sequence[str]) -> TextState:
        if any(not text.strip() for text in texts):
            raise ValueError("the text is empty")
        for text in texts:
            self.say_cut(text)
        pairs = [encode(self.tokenizer, text, self.config.max_text) for text in texts]
        ids, mask = (torch.from_numpy(np.stack(column)).to(self.device) for column in zip(*pairs, strict=True))
        length = int(mask.sum(1).max())  # padding beyond the longest text changes nothing
        return self.model.text_prefix(ids[:, :length], mask[:, :length])

    def _pixels(self, image: Image.Image) -> Tensor:
        return resize_pil(image, self.config.image_size)

    def _prefix(self, images: list[Prepared]) -> ImageState:
        return self.model.image_prefix(torch.stack([image.pixels for image in images]).to(self.device))

    def _require_answers(self, what: str) -> None:
        if not self.answers:
            raise TaskError(
                f"this model has a {what} head but no answer vocabulary (answers.json): convert its weights again "
                "with --answers FILE"
            )

    def _spell(self, caption: Caption) -> Scored:
        return Scored(str(self.tokenizer.decode(caption.ids, skip_special_tokens=True)).strip(), caption.score)


def _best(scores: Tensor, names: Sequence[str], top: int) -> list[list[Scored]]:
    """The `top` names of each row of scores (B,K), best first."""
    best = scores.topk(min(top, len(names)), dim=-1)
    rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [[Scored(names[i], score) for score, i in zip(*row, strict=True)] for row in rows]
