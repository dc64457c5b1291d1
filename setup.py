"""Installation of unfoldldm_basicsr. Reads no other package: torch need not be installed."""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    raise SystemExit(
        'unfoldldm_basicsr needs Python 3.10, 3.11 or 3.12, this is '
        f'{sys.version_info[0]}.{sys.version_info[1]}: BasicSR 1.4.2 is published as source only, '
        'and its set-up script fails on Python 3.13 and later. '
        'Make an environment with an older Python: python3.12 -m venv .venv'
    )

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    text = (ROOT / 'unfoldldm_basicsr' / '__init__.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE).group(1)


def read_readme() -> str:
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.is_file() else ''


setup(
    name='unfoldldm_basicsr',
    version=read_version(),
    description='UnfoldLDM and VLU-Net, deep unfolding networks for image restoration, in BasicSR',
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['unfoldldm_basicsr', 'unfoldldm_basicsr.*']),
    package_data={'unfoldldm_basicsr': ['weights/pretrained/*']},
    python_requires='>=3.10,<3.13',
    install_requires=[
        'basicsr==1.4.2',  # source only: see scripts/env.sh for the installation that works
        'torch>=2.4',
        'torchvision>=0.19',
        'numpy',
        'opencv-python',
        'imagecodecs',  # PNG of every kind, and the compressions inside TIFF
        'tifffile',
        'pillow>=10.1',
        'lmdb',
        'pyyaml',
        'pydantic>=2.7',
        'safetensors>=0.4',
        'einops>=0.7',
        'open_clip_torch>=2.24',  # the published VLU-Net is steered by a tuned CLIP
        'scipy<2',  # BasicSR imports scipy.ndimage.filters, which SciPy 2 removes
        'scikit-image',
        'matplotlib>=3.7',  # lays the pictures out
        'setuptools',  # BasicSR imports distutils, which Python 3.12 has only through setuptools
        'tqdm',
        'packaging',  # unfoldldm doctor compares versions
        'pandas>=2.2',  # tables of compare, ablate and report
        'tabulate>=0.9',  # columns of texts in `disable_numparse`
    ],
    extras_require={
        'mamba': ['mamba-ssm>=2.2'],  # needs an NVIDIA GPU and nvcc
        'metrics': ['lpips>=0.1.4'],
        'pyiqa': ['pyiqa>=0.1.13'],  # metric calculate_pyiqa, and FID of two folders
        'test': [
            'pytest>=8',
            'pymatreader',
            'hypothesis>=6.100',
            'ruff>=0.6',
            'spandrel>=0.4',
            'spandrel_extra_arches>=0.2',
        ],
    },
    entry_points={'console_scripts': ['unfoldldm = unfoldldm_basicsr.cli:main']},
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Image Processing',
    ],
)
