"""Five photos that no training saw, degraded and restored with the weights of the package.

python scripts/data/pretrained_picture.py -o docs/images/pretrained.png
"""

import argparse

import numpy as np
from matplotlib import pyplot as plt
from skimage import data
from skimage.metrics import peak_signal_noise_ratio as psnr

from unfoldldm_basicsr.data.degradations import DegradationChain
from unfoldldm_basicsr.restoring import Restorer
from unfoldldm_basicsr.weights.packaged import packaged_file

NOISE, BLUR = 'gaussian_noise', 'gaussian_blur'
DARK = {'type': 'low_light', 'gamma': 2.2, 'gain': 0.65, 'shot_noise': 0.0025, 'read_noise': 2}
CASES = (  # photo, top left corner, weights, degradations
    ('astronaut', (0, 110), 'denoise', [{'type': NOISE, 'sigma': 25}]),
    ('chelsea', (20, 90), 'denoise', [{'type': NOISE, 'sigma': 50}]),
    ('coffee', (90, 200), 'denoise_deblur',
     [{'type': BLUR, 'sigma': 0.8}, {'type': NOISE, 'sigma': 25}]),
    ('astronaut', (0, 110), 'lowlight',
     [DARK, {'type': BLUR, 'sigma': 0.6}, {'type': NOISE, 'sigma': 8}]),
    ('coffee', (90, 200), 'lowlight',
     [DARK, {'type': BLUR, 'sigma': 0.6}, {'type': NOISE, 'sigma': 8}]),
)  # fmt: skip
SIDE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('-o', '--output', required=True, help='picture to write')
    args = parser.parse_args()
    figure, cells = plt.subplots(3, len(CASES), figsize=(15, 9.6), layout='constrained')
    for column, (photo, (top, left), weights, steps) in zip(cells.T, CASES, strict=True):
        truth = getattr(data, photo)()
        chain = DegradationChain(degradations=steps)
        degraded = chain((truth / 255).astype(np.float32), np.random.default_rng(0))
        degraded = (degraded.clip(0, 1) * 255).round().astype(np.uint8)
        restored = Restorer(packaged_file(weights)).restore(degraded)
        rows = {'degraded': degraded, f'--pretrained {weights}': restored, 'truth': truth}
        for cell, (title, image) in zip(column, rows.items(), strict=True):
            cell.imshow(image[top : top + SIDE, left : left + SIDE])
            score = '' if image is truth else f', {psnr(truth, image):.2f} dB'
            cell.set_title(title + score, fontsize=11)
            cell.axis('off')
    figure.savefig(args.output, dpi=75)


if __name__ == '__main__':
    main()
