"""Packaging of `fiber`; everything declarative lives here, tool settings in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    name="fiber-vl",
    version="0.1.0",
    description="Coarse-to-fine vision-language pre-training with fusion in the backbone (FIBER)",
    license="MIT",
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"fiber": ["py.typed"]},  # type checkers read the hints of an installed package
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",  # deformable convolution, NMS, image transforms
        "deepspeed>=0.19.6,<0.20",  # earlier releases rescale losses on accumulation
        "transformers>=5,<6",
        "tokenizers>=0.20",
        "timm>=1.0",
        "webdataset>=1.0,<2",
        "pycocotools>=2.0.8",
        "simplejpeg>=1.9",  # decodes straight to arrays, ~1.15x PIL per core
        "safetensors>=0.4.5",
        "huggingface_hub>=0.26",
        "pydantic>=2.9",  # types and ranges of configurations; deepspeed brings it anyway
        "pyyaml>=6",
        "wandb>=0.31",  # finish_timeout: a run that cannot upload must end all the same
        "pillow>=11",  # 10.4 gives the size of a turned TIFF before turning
        "numpy>=1.26",
        "tqdm>=4.66",
        "psutil>=5.9",  # resident memory in benchmarks
        "matplotlib>=3.8",  # figures: curves, grounded phrases, contact sheets
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.7",  # test files side by side; its schedulers may be replaced
            "jsonschema>=4.20",
            "scikit-image>=0.24",
            "scipy>=1.11",
            "peft>=0.17",
        ],
        "lint": ["ruff>=0.8", "mypy>=1.11", "types-PyYAML", "types-tqdm", "types-psutil"],
        "caption": ["pycocoevalcap>=1.2"],  # METEOR and the PTB tokeniser need Java
        # root noun phrases of RefCOCO; its English model: python -m spacy download en_core_web_sm
        "refer": ["spacy>=3.7,<4"],
    },
    entry_points={"console_scripts": ["fiber=fiber.cli.main:main"]},
)
