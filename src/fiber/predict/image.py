"""A trained model on one's own images: `fiber.load(folder)` gives a predictor with one method per task.

A model at image level matches, retrieves, captions and answers, as far as its heads go; a model at region level
grounds, refers and detects. Every method takes one image or several (paths, PIL images, arrays) and returns a list
with one entry per image. Boxes are [x0, y0, x1, y1] in pixels of the upright original.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fiber.backbone.states import ImageState, TextState
from fiber.coarse.decoding import Caption, SpecialTokens, beam_search, greedy, nucleus
from fiber.coarse.model import CoarseModel
from fiber.data.text import encode
from fiber.images.resize import resize_pil
from fiber.predict.base import Predictor, TaskError, many
from fiber.predict.image_index import INDEX_FILE, ImageIndex, build_index, fingerprint
from fiber.predict.sources import ImageSource, open_image

# ---------------------------------------------------------------------------------------------- image level


@dataclass(frozen=True)
class Match:
    """How well a text fits an image: `probability` of the matching head (0..1; None without one) and `similarity`
    (cosine) of the contrastive features (None without them)."""

    probability: float | None
    similarity: float | None


@dataclass(frozen=True)
class Scored:
    """A text (caption, answer) or path with its score: mean log-probability of a caption's tokens, probability of an
    answer, similarity or matching probability of a retrieved image."""

    text: str
    score: float


class CoarsePredictor(Predictor):
    """Use of a model at image level."""

    model: CoarseModel

    def match(self, images: ImageSource | Sequence[ImageSource], text: str, batch: int = 8) -> list[Match]:
        """Whether `text` describes each image."""
        self.require("match")
        words = self._text([text])
        text_feature = self.model.text_embedding(words)[0] if "retrieve" in self.tasks else None
        results = []
        for image in self._prefixes(many(images), batch):
            logits = self._match_logits(image, words)
            similarity: list[float | None] = [None] * len(image)
            if text_feature is not None:
                similarity = (self.model.image_embedding(image) @ text_feature).tolist()
            results += [Match(p, s) for p, s in zip(logits.softmax(-1)[:, 1].tolist(), similarity, strict=True)]
        return results

    def caption(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        method: Literal["beam", "greedy", "nucleus"] = "beam",
        beams: int = 5,
        top_p: float = 0.9,
        temperature: float = 1.0,
        seed: int = 0,
        batch: int = 8,
    ) -> list[list[Scored]]:
        """Captions of each image, best first: `beams` of them by beam search, one by the other methods."""
        self.require("caption")
        special_tokens, length = SpecialTokens.of(self.tokenizer), self.config.max_text
        generator = torch.Generator(self.device).manual_seed(seed)
        results = []
        for state in self._prefixes(many(images), batch):
            image = self.model.backbone.image_tail(state)
            if method == "beam":
                found = beam_search(self.model, image, special_tokens, length, beams)
            elif method == "greedy":
                found = [[caption] for caption in greedy(self.model, image, special_tokens, length)]
            elif method == "nucleus":
                drawn = nucleus(
                    self.model,
                    image,
                    special_tokens,
                    length,
                    top_p=top_p,
                    temperature=temperature,
                    generator=generator,
                )
                found = [[caption] for caption in drawn]
            else:
                raise ValueError(f"method {method!r} is not one of beam, greedy, nucleus")
            results += [[self._spell(caption) for caption in own] for own in found]
        return results

    def answer(
        self, images: ImageSource | Sequence[ImageSource], question: str, top: int = 5, batch: int = 8
    ) -> list[list[Scored]]:
        """The `top` likeliest answers to a question about each image."""
        self.require("answer")
        if not self.answers:
            raise TaskError(
                "this model has a question head but no answer vocabulary (answers.json): convert its weights again "
                "with --answers FILE"
            )
        words, results = self._text([question]), []
        for image in self._prefixes(many(images), batch):
            cls = self.model.fuse(image, words[[0] * len(image)]).cls
            probability = self.model.heads.classifiers["vqa"](cls).float().sigmoid()
            best = probability.topk(min(top, len(self.answers)), dim=-1)
            for scores, places in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                results.append([Scored(self.answers[i], s) for i, s in zip(places, scores, strict=True)])
        return results

    def index(self, folder: str | Path, file: str | Path | None = None) -> ImageIndex:
        """The contrastive features of a folder's images, kept in `file` (default: `.fiber-index.npz` in the folder)
        and reused: only new and changed images are encoded."""
        self.require("retrieve")
        folder = Path(folder)
        model = fingerprint(self.model, self.config.image_size)
        return build_index(folder, Path(file or folder / INDEX_FILE), model, lambda path: self.embed_images(path)[0])

    def index_of(self, paths: Sequence[Path], batch: int = 8) -> ImageIndex:
        """Features of the given images, not kept. Raises ImageError for one that cannot be read."""
        features = self.embed_images(paths, batch)
        return ImageIndex(Path(), [str(path) for path in paths], features, len(paths), [])

    def retrieve(self, index: ImageIndex, text: str, top: int = 5, rerank: int = 0) -> list[Scored]:
        """The `top` images of an index for a text, best first, by cosine similarity; with `rerank` > 0 the best so
        many are ordered again by the probability of the matching head."""
        self.require("retrieve")
        similarity = index.features @ self.embed_texts([text])[0]
        order = similarity.argsort(descending=True, stable=True)[: max(top, rerank)].tolist()
        found = [Scored(str(index.folder / index.paths[i]), float(similarity[i])) for i in order]
        if rerank:
            self.require("match")
            matched = self.match([scored.text for scored in found[:rerank]], text)
            again = [Scored(f.text, m.probability or 0.0) for f, m in zip(found[:rerank], matched, strict=True)]
            found = sorted(again, key=lambda scored: -scored.score)
        return found[:top]

    def embed_images(self, images: ImageSource | Sequence[ImageSource], batch: int = 8) -> Tensor:
        """Contrastive features (B,H) fp32 of unit length, on the CPU."""
        self.require("retrieve")
        return torch.cat([self.model.image_embedding(image).cpu() for image in self._prefixes(many(images), batch)])

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Contrastive features (B,H) fp32 of unit length, on the CPU."""
        self.require("retrieve")
        return self.model.text_embedding(self._text(texts)).cpu()

    def _text(self, texts: Sequence[str]) -> TextState:
        if any(not text.strip() for text in texts):
            raise ValueError("the text is empty")
        pairs = [encode(self.tokenizer, text, self.config.max_text) for text in texts]
        ids, mask = (torch.from_numpy(np.stack(column)).to(self.device) for column in zip(*pairs, strict=True))
        length = int(mask.sum(1).max())  # padding beyond the longest text changes nothing
        return self.model.text_prefix(ids[:, :length], mask[:, :length])

    def _prefixes(self, images: Sequence[ImageSource], batch: int) -> Iterator[ImageState]:
        """Image states of the images, `batch` at a time."""
        for start in range(0, len(images), batch):
            squares = [
                resize_pil(open_image(source).image, self.config.image_size)
                for source in images[start : start + batch]
            ]
            yield self.model.image_prefix(torch.stack(squares).to(self.device))

    def _match_logits(self, image: ImageState, text: TextState) -> Tensor:
        return self.model.match_logits(image, text[[0] * len(image)])

    def _spell(self, caption: Caption) -> Scored:
        return Scored(str(self.tokenizer.decode(caption.ids, skip_special_tokens=True)).strip(), caption.score)
