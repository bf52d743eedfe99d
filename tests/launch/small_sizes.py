"""What the real configurations are overridden by, so that a CPU runs them in seconds: sizes, and what a card has
and a CPU has not (half precision, reading processes, a tracking server)."""

TOWERS = [
    "model.image.embed_dim=8", "model.image.depths=[1,1,2,1]", "model.image.heads=[1,2,2,4]", "model.image.window=2",
    "model.text.width=16", "model.text.layers=3", "model.text.heads=2", "model.text.intermediate=32",
    "model.num_fused=2", "model.image.pretrained=null", "model.text.pretrained=null",
]  # fmt: skip
HEAD = [f"detector.{key}" for key in ("channels=16", "head_channels=16", "head_blocks=1", "groups=4")]
COARSE = [*TOWERS, "model.head_width=16", "image_size=64"]

STEPS = [
    "train.steps=2", "train.global_batch=2", "train.micro_batch=2", "train.accumulation=1", "train.save_every=2",
    "train.log_every=1", "train.precision=fp32", "eval.every=2", "eval.batch=4", "data.workers=0",
    "tracking.wandb=off",
]  # fmt: skip
IMAGES = [*STEPS, "image_size=64", "model.image.window=2"]
REGIONS = [
    *STEPS, "regions.short_sides=[64]", "regions.test_side=64", "regions.max_side=96", "regions.figures=1",
    "max_text=64",
]  # fmt: skip
