"""Packaging of `fiber`; everything declarative lives here, tool settings in pyproject.toml."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class WithConfigurations(build_py):
    """Puts `configs/` into the package; an editable install reads it where it lies (cli/config.py)."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "fiber" / "configs"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE / "configs", target)


setup(
    name="fiber-vl",
    version=re.search(r'__version__ = "(.*)"', (HERE / "src/fiber/__init__.py").read_text())[1],
    description="Coarse-to-fine vision-language pre-training with fusion in the backbone (FIBER)",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    author="The fiber authors",
    keywords=["vision-language", "pre-training", "grounding", "open-vocabulary detection", "retrieval", "captioning"],
    project_urls={
        "Paper": "https://arxiv.org/abs/2206.07643",
        "DeepSpeed": "https://www.deepspeed.ai",
        "Transformers": "https://huggingface.co/docs/transformers",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "fiber": ["py.typed"],  # type checkers read the hints of an installed package
        "fiber.data.shapes": ["towers/*", "towers/text/*"],  # what `make demo` begins with, 4 MB
        "fiber.evaluation": ["report_page/*"],  # the page of a report
    },
    cmdclass={"build_py": WithConfigurations},
    install_requires=[  # what a trained model needs on one's own images; `train` has the rest
        "torch>=2.6",
        "torchvision>=0.21",  # deformable convolution, NMS, image transforms
        "transformers>=5,<6",
        "tokenizers>=0.22",
        "simplejpeg>=1.9",  # decodes straight to arrays, ~1.15x PIL per core
        "safetensors>=0.4.5",
        "huggingface_hub>=1.3",
        "pydantic>=2.9",  # types and ranges of configurations
        "pyyaml>=6",
        "pillow>=11",  # 10.4 gives the size of a turned TIFF before turning
        "numpy>=1.26",
    ],
    extras_require={
        "train": [
            "deepspeed>=0.19.6,<0.20",  # earlier releases rescale losses on accumulation
            "timm>=1.0.3",  # pre-trained image towers
            "webdataset>=1.0,<2",  # shards that lie elsewhere
            "pycocotools>=2.0.8",  # box average precision
            "wandb>=0.31",  # finish_timeout: a run that cannot upload must end all the same
            "psutil>=5.9",  # resident memory in benchmarks
            "matplotlib>=3.8",  # curves
        ],
        "tensorboard": ["tensorboard>=2.16"],  # tracking.tensorboard
        "parquet": ["pyarrow>=15"],  # pairs of a Parquet file, and --out FILE.parquet
        "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],  # fiber convert MODEL FILE.onnx
        "caption": ["pycocoevalcap>=1.2"],  # METEOR and the PTB tokeniser need Java
        # root noun phrases of RefCOCO; its English model: python -m spacy download en_core_web_sm
        "refer": ["spacy>=3.7,<4"],
        "docs": ["mkdocs-material>=9.5"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.7",  # test files side by side; its schedulers may be replaced
            "jsonschema>=4.20",
            "scikit-image>=0.24",
            "scipy>=1.11",
            "peft>=0.17",
            # what the other extras bring, so that their tests run
            "pyarrow>=15",
            "onnx>=1.17",
            "onnxscript>=0.5",
            "onnxruntime>=1.20",
            "tensorboard>=2.16",
        ],
        "lint": ["ruff>=0.8", "mypy>=1.11", "types-PyYAML", "types-psutil"],
    },
    entry_points={"console_scripts": ["fiber=fiber.cli.main:main"]},
)
