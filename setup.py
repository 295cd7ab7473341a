"""Metadata and dependencies; tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_namespace_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "vitlab" / "__init__.py").read_text(), re.MULTILINE)[1]  # the version's only place

REQUIRES = [
    "jax>=0.10.2,<0.13",  # 0.10.2 is the newest for Python 3.11; 0.13 is untested
    "flax>=0.12.8",  # NNX
    "optax>=0.2.8",  # optimizers and schedules
    "orbax-checkpoint>=0.12.8",  # checkpoints: CheckpointManager
    "grain>=0.2.18",  # input pipeline: MapDataset
    "cloudpickle>=3.0",  # sends the input pipeline to worker processes; Grain requires it too
    "array-record>=0.8.1",  # shards, written and read; Grain requires it too
    "tensorflow-datasets>=4.9.10",  # TFDS data sources over array_record; brings no TensorFlow
    "importlib_resources>=6.4",  # tensorflow-datasets 4.9.10 imports it without requiring it
    "ml-collections>=1.1.0",  # config files and their overrides
    "absl-py>=2.3.1",  # command-line flags
    "etils[epath]>=1.12",  # paths, local and remote
    "typing_extensions>=4.10",  # TypeIs; etils requires it too
    "numpy>=2.0",
    "opencv-python-headless>=4.11",  # decodes and resizes images, 2.7x Pillow
    "pillow>=11.3",  # decodes what OpenCV does not: GIF, TIFF, AVIF, CMYK, transparency
    "safetensors>=0.5",  # reads and writes checkpoints of others
    "flatbuffers>=24.3",  # jax.export needs it to write a program, and does not require it
    "jaxtyping>=0.3.2",  # shapes in annotations
    "tensorboardX>=2.6.2",  # TensorBoard logs; imports no TensorFlow
    "rich>=13.9",  # progress bar and tables
]
TEST = [
    "pytest>=8.3",
    "pyyaml>=6.0",  # reads the files of vitlab.launch
    "setuptools>=77",  # builds the wheel and the sdist
    "pytest-xdist>=3.6",  # -n 2
    "pytest-timeout>=2.3",  # a test that hangs ends, and says where
    "beartype>=0.21",  # checks the annotated shapes in tests
    "filelock>=3.16",  # one libtpu user at a time
    "faster-coco-eval>=1.6",  # as extra `detection`
    "scikit-image>=0.25",  # SSIM, to compare with
    "scikit-learn>=1.6",  # average precision, to compare with
    "hypothesis>=6.120",  # properties of windows, orders, splits and parsers
    "tokenizers>=0.21",  # as extra `text`
    "sentencepiece>=0.2",
]
CLOUD = ["etils[epath]>=1.12", "gcsfs>=2025.5", "s3fs>=2025.5"]  # run folders and images in a bucket: gs://, s3://
EXTRAS = {
    "cuda12": ["jax[cuda12]>=0.10.2,<0.13"],
    "cuda13": [
        "jax[cuda13]>=0.10.2,<0.13",
        'jax-triton>=0.4; python_version >= "3.12"',  # Triton kernels outside Pallas; 0.4.1 runs with jax<0.12
    ],
    "tpu": ["jax[tpu]>=0.10.2,<0.13"],  # brings libtpu, which compiles for TPUs, also without one
    "wandb": ["wandb>=0.19"],
    "hub": ["huggingface_hub>=0.30"],  # load_weights("hf://...")
    "text": ["tokenizers>=0.21", "sentencepiece>=0.2"],  # vocabularies of CLIP's and SigLIP's text towers
    "cloud": CLOUD,
    "test-cloud": [  # the tests of buckets, which are skipped without it
        *CLOUD,
        "gcp-storage-emulator>=2026.7",  # buckets of Google on the loopback
        "moto>=5.2",  # buckets of Amazon on the loopback
        "flask>=3.1",  # for the server of moto, whose extra `server` brings far more than buckets need
        "flask-cors>=6.0",  # as flask
    ],
    # Requirements of jax2onnx, which vitlab.export --format=onnx uses. Install jax2onnx itself by
    # `pip install --no-deps jax2onnx`: 0.17.1 asks for an orbax-checkpoint below 0.11.37, but the
    # parts used here work with the newer one.
    "onnx": ["onnx>=1.20", "onnx-ir>=0.2.1", "onnxruntime>=1.24", "equinox>=0.13.1", "dm-pix>=0.4.4", "einops>=0.8.1"],
    "notebooks": ["jupyter>=1.1", "matplotlib>=3.9"],
    "detection": ["faster-coco-eval>=1.6"],  # COCO's average precision
    "parity": ["torch>=2.6", "timm>=1.0.20"],  # to read .pth files, and to compare speed with timm
    "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"],  # the site: `make docs`
    "test": TEST,
    "dev": [
        *TEST,
        "ruff>=0.12",
        "pyright[nodejs]>=1.1.400",
        "import-linter>=2.3",
        "pre-commit>=4.0",  # .pre-commit-config.yaml
    ],
}

setup(
    name="vitlab",
    version=VERSION,
    description="A lab bench for vision transformers in JAX: a proven zoo, mixers that can be swapped, fused attention kernels",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0 AND MIT AND CC-BY-4.0 AND CC0-1.0",  # the code; the bundled images
    license_files=["LICENSE", "vitlab/data/bundled/LICENSE", "vitlab/data/bundled/ORIGIN.md"],
    python_requires=">=3.11",
    packages=[*find_namespace_packages(include=["vitlab", "vitlab.*", "pallas_kernels", "pallas_kernels.*"]), "vitlab.configs"],
    package_dir={"vitlab.configs": "configs"},  # the recipes, for --config=vitlab:quickstart; see vitlab/recipes.py
    package_data={
        "vitlab": ["py.typed"],
        "vitlab.data": ["bundled/*"],
        "vitlab.launch": ["*.sbatch", "*.sh", "*.yaml"],
        "vitlab.models": ["*.csv"],
        "pallas_kernels": ["py.typed", "*.md", "*/*.md"],
    },
    entry_points={"console_scripts": ["vitlab = vitlab.__main__:console"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
