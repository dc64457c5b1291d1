"""Validation shows in TensorBoard what it restored: input, stages, output, truth side by side."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from model_runs import Board, Pictures
from torch.utils.data import DataLoader

from unfoldldm_basicsr.training.evaluation import Evaluator

OPT = {'is_train': True, 'rank': 0, 'world_size': 1, 'dist': False, 'name': 'x',
       'logger': {'use_tb_logger': True}}  # fmt: skip


def shown(folder, pictures=None, *, traced: bool = False, **changes) -> Board:
    """What a validation writes; the output is half as bright as the input."""

    def halves(batch):
        stages = [SimpleNamespace(**dict.fromkeys(('x_hat', 'x_tilde', 'x'), f * batch['lq']))
                  for f in (0.25, 0.5)]  # fmt: skip
        trace = SimpleNamespace(stages=stages) if traced else None
        return SimpleNamespace(output=0.5 * batch['lq'], trace=trace)

    run = Evaluator({**OPT, 'path': {'log': str(folder)}, **changes}, torch.device('cpu'), halves)
    board = Board()
    run.report('held_out', run.evaluate(DataLoader(pictures or Pictures(3)), '7', False), 7, board)
    return board


@pytest.mark.parametrize('traced', [False, True])
def test_panels_show_input_stages_output_and_truth(tmp_path, traced):
    board = shown(tmp_path, traced=traced)
    assert [n for n in board if 'images' in n] == ['images/held_out/p0', 'images/held_out/p1']
    item = Pictures()[0]
    lq, gt = item['lq'], item['gt']
    expected = [lq, *([0.25 * lq] if traced else []), 0.5 * lq, gt]
    assert torch.equal(board['images/held_out/p0'], torch.cat(expected, -1))


class LargePicture(Pictures):
    def __getitem__(self, index: int) -> dict:
        lq, gt = torch.rand(2, 3, 300, 500)
        return {'lq': lq, 'gt': gt, 'lq_path': '\udce9.png'}


def test_large_images_are_reduced_and_any_name_is_a_tag(tmp_path):
    board = shown(tmp_path, LargePicture(1))
    assert board[r'images/held_out/\udce9'].shape == (3, 256, 3 * 427)


@pytest.mark.parametrize(
    ('changes', 'count'),
    [
        ({'logger': {'use_tb_logger': True, 'tb_images': 9}}, 3),
        ({'logger': {'use_tb_logger': True, 'tb_images': 0}}, 0),
        ({'is_train': False}, 0),
    ],
)
def test_as_many_are_shown_as_the_option_file_says(tmp_path, changes, count):
    assert sum('images' in name for name in shown(tmp_path, **changes)) == count
