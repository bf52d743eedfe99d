"""Detection of LVIS's 1,203 classes in prompts of 40: prefixes of image and prompts shared and the prompts batched,
as evaluation and `fiber detect` do, and the whole model run again for every prompt, as in the release."""

from dataclasses import dataclass, field, replace

import torch

from benchmark_common import DTYPES, PAD, BenchOptions, compare, ratios
from fiber import distributed
from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.config.stage2 import Stage2Config
from fiber.data.prompts import SPECIALS, Prompt
from fiber.evaluation.metrics.lvis_ap import PER_IMAGE
from fiber.fine.model import FiberDetector
from fiber.fine.postprocess import DETECTION, Detections
from fiber.tasks.regions import detector_options

CLASSES, CHUNK, TOKENS = 1203, 40, 3  # tokens of a name, its full stop not counted
START, END = 0, 2


@dataclass(frozen=True)
class DetectBenchConfig(Stage2Config):
    """A stage-2 configuration and the options of a measurement."""

    bench: BenchOptions = field(default_factory=BenchOptions)


def run(config: DetectBenchConfig) -> dict:
    """Seconds and images/s of both forms on one image of noise, `regions.test_side` square, `eval.batch` prompts
    at a time; their largest differences in score and box. Reading the prompts, once per set of images, is not part
    of the shared form's time and is given next to it. Raises RuntimeError where both find different boxes."""
    device = distributed.device()
    model, prompts = build_model(config), noise_prompts(config)
    generator, side = torch.Generator().manual_seed(config.seed), config.regions.test_side
    images = torch.randint(0, 256, (1, 3, side, side), generator=generator, dtype=torch.uint8).to(device)
    sizes = torch.tensor([[side, side]], device=device)
    selection, text = replace(DETECTION, keep=PER_IMAGE), model.encode_prompts(prompts)

    def shared() -> Detections:
        return model.detect(images, sizes, [prompts], selection, pairs=config.eval.batch, text=text)[0]

    def rerun() -> Detections:
        every = Detections.cat([model.detect(images, sizes, [[prompt]], selection)[0] for prompt in prompts])
        return every.best(len(every.scores))

    differences = compare_detections(shared(), rerun())
    timing = compare(
        {"shared": shared, "rerun": rerun, "read_prompts": lambda: model.encode_prompts(prompts)}, config.bench
    )
    for row in timing.values():
        if distributed.device().type != "cuda":
            row.pop("peak_memory")  # the process's high-water mark cannot tell the forms apart
    for form in ("shared", "rerun"):
        timing[form]["images_per_second"] = 1 / timing[form]["seconds"]
    return timing | {"prompts": len(prompts), **ratios(timing["rerun"], timing["shared"]), **differences}


def build_model(config: DetectBenchConfig) -> FiberDetector:
    """The configured detector with gates open, biased to find something in noise."""
    torch.manual_seed(config.seed)
    backbone = build_backbone(config.model, config.bench.vocabulary, PAD, config.max_text, fine=True)
    initialise(backbone, "fan_in", config.seed)
    model = FiberDetector(backbone, **detector_options(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.5)
        model.head.bias += 1.5
    return model.eval().requires_grad_(False).to(distributed.device(), DTYPES[config.train.precision])


def noise_prompts(config: DetectBenchConfig) -> list[Prompt]:
    """Prompts of random words that hold every class once."""
    generator, prompts = torch.Generator().manual_seed(config.seed), []
    for start in range(0, CLASSES, CHUNK):
        classes = list(range(start, min(start + CHUNK, CLASSES)))
        length = SPECIALS + len(classes) * (TOKENS + 1)
        if length > config.max_text:
            raise ValueError(f"max_text {config.max_text}: prompts of {CHUNK} classes have {length} tokens here")
        ids = torch.full((config.max_text,), PAD)
        ids[:length] = torch.randint(4, config.bench.vocabulary, (length,), generator=generator)
        ids[0], ids[length - 1] = START, END
        first = 1 + torch.arange(len(classes))[:, None] * (TOKENS + 1)
        column = torch.arange(config.max_text)
        token_map = (column >= first) & (column < first + TOKENS)
        prompts.append(Prompt("", ids, (column < length).long(), token_map, [], classes))
    return prompts


def compare_detections(shared: Detections, rerun: Detections) -> dict[str, float]:
    """Number of detections and largest differences. Raises RuntimeError where classes or their numbers differ."""
    rows = [sorted(zip(d.labels.tolist(), d.scores.tolist(), d.boxes.tolist(), strict=True)) for d in (shared, rerun)]
    if [label for label, *_ in rows[0]] != [label for label, *_ in rows[1]]:
        raise RuntimeError(f"both forms find different things: {len(rows[0])} and {len(rows[1])} detections")
    scores, boxes = (torch.tensor([[row[k] for row in form] for form in rows]) for k in (1, 2))
    return {
        "detections": len(rows[0]),
        "largest_score_difference": float((scores[0] - scores[1]).abs().max()),
        "largest_box_difference": float((boxes[0] - boxes[1]).abs().max()),
    }
