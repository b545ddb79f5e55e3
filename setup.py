"""Packaging; what the tools are told is in pyproject.toml, what exactly is installed in requirements.lock."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "lockstep" / "__init__.py").read_text())[1]
PACKAGES = ["lockstep", "dataflow", "trainer", "serving", "components", "pipelines"]

DEV = [
    # Reads back what we write for Vector Search; Beam brings it anyway.
    "fastavro>=1.12",
    "hypothesis>=6.170",
    "import-linter>=2.16",
    "ipykernel>=6",
    "mypy>=2.4",
    "nbclient>=0.10",
    "nbformat>=5",
    "pre-commit>=4",
    "pytest>=9",
    "pytest-timeout>=2",
    "pytest-xdist>=3",
    "ruff>=0.17",
    "types-PyYAML",
]

setup(
    name="lockstep-retrieval",
    version=VERSION,
    description="Two-tower candidate retrieval in which only equal model versions ever meet",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[p for p in find_namespace_packages(str(HERE)) if p.split(".")[0] in PACKAGES],
    package_data={
        "dataflow": ["queries/*.sql"],
        "dataflow.feature_report": ["*.html"],
        "trainer.evaluation": ["*.html"],
    },
    install_requires=[
        # TensorFlow, TF Recommenders and ScaNN share a C++ ABI: 2.19 and 2.21 break scann 1.4.2.
        "tensorflow==2.20.0",
        "tf-keras==2.20.1",
        "tensorflow-recommenders==0.7.7",
        "scann[tf]==1.4.2",
        "apache-beam==2.77.0",
        "kfp==2.17.0",
        "click>=8.1",
        "duckdb>=2.0,<3",
        "jinja2>=3.1",
        "lmdb>=3,<4",
        "numpy>=2.4,<3",
        # The search of `lockstep tune`: a journal that a killed search goes on with, and samplers without a service.
        "optuna>=5,<6",
        # The floats of JSON for Vector Search, several times as fast as Arrow's; Beam brings it anyway.
        "orjson>=3.11,<4",
        "pyarrow>=25",
        "pydantic>=2.14,<3",
        "sqlglot>=30.30,<31",
        "tensorboard>=2.20",
    ],
    extras_require={
        "gcp": [
            "apache-beam[gcp]==2.77.0",
            "google-cloud-aiplatform==1.165.1",
            "google-cloud-bigquery>=3.47",
            "google-cloud-bigquery-storage>=2.43",
            "google-cloud-storage>=3.17",
        ],
        # ALS, which the evaluation compares with; it brings scipy.
        "baselines": ["implicit>=0.7.3,<0.8"],
        "dev": DEV,
    },
    entry_points={"console_scripts": ["lockstep = pipelines.cli:main"]},
)
