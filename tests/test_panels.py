"""Validation shows in TensorBoard what it restored: input, stages, output, truth side by side."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers import write_photos
from torch.utils.data import DataLoader

from unfoldldm_basicsr.data.paired_degradation_dataset import PairedDegradationDataset
from unfoldldm_basicsr.training.evaluation import Evaluator

ODD_NAME = 'img_1\udce9.png'  # no UTF-8, which TensorBoard's format demands


class Writer(dict):
    """Takes the place of TensorBoard's writer."""

    def add_image(self, tag, image, iteration):
        self[tag, iteration] = image

    def add_scalar(self, *_):
        """Scalars are tested elsewhere."""


def halves(batch, *, traced: bool):
    """Half as bright as the input; by way of a quarter."""
    stages = [SimpleNamespace(**dict.fromkeys(('x_hat', 'x_tilde', 'x'), f * batch['lq']))
              for f in (0.25, 0.5)]  # fmt: skip
    trace = SimpleNamespace(stages=stages) if traced else None
    return SimpleNamespace(output=0.5 * batch['lq'], trace=trace)


def shown(folder, *, traced=False, size=(24, 32), **changes) -> Writer:
    """What a validation of three photos writes at iteration 7."""
    for part in ('gt', 'lq'):
        if not (folder / part).exists():
            photos = write_photos(folder / part, 3, size, seed='gt lq'.index(part))
            photos[1].rename(photos[1].with_name(ODD_NAME))
    roots = {f'dataroot_{part}': str(folder / part) for part in ('gt', 'lq')}
    section = {'type': 'PairedDegradationDataset', 'name': 'held_out', 'phase': 'val', **roots}
    data = PairedDegradationDataset({**section, 'io_backend': {'type': 'disk'}})
    opt = {'is_train': True, 'rank': 0, 'world_size': 1, 'dist': False, 'name': 'x',
           'path': {'log': str(folder)}, 'val': {}, 'logger': {'use_tb_logger': True},
           **changes}  # fmt: skip
    run = Evaluator(opt, torch.device('cpu'), lambda batch: halves(batch, traced=traced))
    writer = Writer()
    for iteration in (6, 7):
        results = run.evaluate(DataLoader(data), str(iteration), False)
        if iteration == 7 or opt['rank'] == 0:
            run.report('held_out', results, iteration, writer)
    return writer


@pytest.mark.parametrize('traced', [False, True])
def test_panels_show_input_stages_output_and_truth(tmp_path, traced):
    large = shown(tmp_path / 'large', size=(300, 500))['images/held_out/img_0', 7]
    assert large.shape == (3, 256, 3 * 427)
    writer = shown(tmp_path, traced=traced)
    tags = [tag for tag, iteration in writer if iteration == 7]
    assert tags == ['images/held_out/img_0', r'images/held_out/img_1\udce9'], 'two by default'
    parts = writer['images/held_out/img_0', 7].split(32, -1)
    lq, gt = parts[0], parts[-1]
    assert lq.shape == (3, 24, 32)
    assert not torch.equal(lq, gt)
    expected = [lq, *([0.25 * lq] if traced else []), 0.5 * lq, gt]
    for part, image in zip(parts, expected, strict=True):
        assert torch.equal(part, image)


@pytest.mark.parametrize(
    ('changes', 'count'),
    [
        ({'logger': {'use_tb_logger': True, 'tb_images': 9}}, 3),
        ({'logger': {'use_tb_logger': True, 'tb_images': 0}}, 0),
        ({'is_train': False}, 0),
    ],
)
def test_as_many_are_shown_as_the_option_file_says(tmp_path, changes, count):
    assert len(shown(tmp_path, **changes)) == 2 * count
