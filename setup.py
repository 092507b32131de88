"""Packaging of kappaface_dist; constraints.txt has the exact versions it is tested with."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "kappaface_dist/__init__.py").read_text())[1]
# Folders of the source tree that are a part of the installed package.
SHIPPED = ("configs", "launch", "tools")

EXTRAS = {
    # One of the two: for drivers of CUDA 12 or of CUDA 13. Both decode on the CPU without a driver.
    "dali": ["nvidia-dali-cuda120>=1.45; platform_system=='Linux'"],
    "dali-cuda130": ["nvidia-dali-cuda130>=1.52; platform_system=='Linux'"],
    # Object storage: S3 and the web; Google's needs a library of its own.
    "remote": ["fsspec[http]>=2024.2", "s3fs>=2024.2"],
    "remote-gs": ["fsspec>=2024.2", "gcsfs>=2024.2"],
    "parquet": ["pyarrow>=15.0"],
    "align": ["opencv-python-headless>=4.10.0.84"],
    "tinyface": ["scipy>=1.11"],
    "wandb": ["wandb>=0.18"],
    # CUDA builds of torch bring the Triton that fits them; this is for the interpreter in tests.
    "triton": ["triton>=3.2; platform_system=='Linux'"],
    "docs": ["pdoc>=15.0"],
    "export": ["onnx>=1.18", "onnxruntime>=1.23", "onnxscript>=0.5"],
}

setup(
    name="kappaface_dist",
    version=VERSION,
    description="Distributed face-recognition training: sharded classifier, KappaFace margin",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    url="https://arxiv.org/abs/2201.07394",
    keywords="face recognition, metric learning, partial fc, arcface, kappaface, distributed",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=[
        *find_packages(include=["kappaface_dist", "kappaface_dist.*"]),
        *(f"kappaface_dist.{name}" for name in SHIPPED),
    ],
    package_dir={f"kappaface_dist.{name}": name for name in SHIPPED},
    package_data={
        "kappaface_dist.evaluation.reports": ["pages/*"],
        "kappaface_dist.configs": ["**/*.yaml"],
        "kappaface_dist.launch": ["slurm/*"],
    },
    entry_points={"console_scripts": ["kappaface=kappaface_dist.console:main"]},
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "jinja2>=3.1",
        "pyyaml>=6.0",
        "safetensors>=0.4",
        "simplejpeg>=1.7",
        "pillow>=10.0",
        "matplotlib>=3.8",
        "packaging>=23.0",
        "tensorboard>=2.15",
        "tqdm>=4.66",
    ],
    extras_require={
        **EXTRAS,
        "dev": [
            *EXTRAS["wandb"],
            *EXTRAS["triton"],
            *EXTRAS["dali"],
            *EXTRAS["parquet"],
            *EXTRAS["remote"],
            *EXTRAS["export"],
            "faiss-cpu>=1.8",
            *EXTRAS["align"],
            # A real S3 server for the tests of object storage.
            "moto[s3]>=5.0.3",
            "flask>=3.0",
            "flask-cors>=4.0",
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "scikit-learn>=1.4",
            "scipy>=1.11",
            "ruff>=0.8",
            "mypy>=1.13",
            "codespell>=2.3",
            "types-PyYAML>=6.0",
            "types-tqdm>=4.66",
        ],
    },
)
