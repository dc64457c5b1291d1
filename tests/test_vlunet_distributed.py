"""Two processes train VLU-Net with a frozen and a trained embedding; the replicas stay equal.

Run by torchrun this file is the job itself; run by pytest it starts that job once and looks at what
it found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, run_python
from torch import distributed
from vlunet_runs import random_batch, step, vlunet_options

SOURCES = ('label', 'learned')


class Job:
    """What every process runs; ``found`` is written by rank 0."""

    def __init__(self, folder: Path):
        self.folder, self.found = folder, {}
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def everywhere(self, value) -> list:
        values = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def equal_everywhere(self, net) -> bool:
        own = torch.cat([v.flatten().double() for v in net.state_dict().values()])
        return all(torch.equal(own, other) for other in self.everywhere(own))

    def build(self, source: str, name: str, alone: bool = False):
        from unfoldldm_basicsr.models import VLUNetModel

        options = vlunet_options(self.folder / name, source, accum_iter=1 if alone else 2)
        if not alone:
            options |= {'dist': True, 'rank': self.rank, 'world_size': self.world}
        return VLUNetModel(options)

    def train(self, source: str) -> None:
        """Replicas start different; wrapper and model must make them equal and keep them so."""
        torch.manual_seed(self.rank)
        model = self.build(source, source)
        nets = {
            'net_g': model.network.bare,
            'net_g_ema': model.net_g_ema,
            'net_e': model.conditioning.network.bare,
        }
        if source == 'learned':
            nets['net_e_ema'] = model.conditioning.network.average
        self.found[source] = {'start': self.equal_everywhere(nets['net_e'])}
        for iteration in (1, 2):  # a second step hangs or fails where a gradient was missing
            step(model, iteration, random_batch(10 * iteration + self.rank))
        differ = len({str(lq) for lq in self.everywhere(model.batch['lq'])}) == self.world
        self.found[source] |= {name: self.equal_everywhere(net) for name, net in nets.items()}
        self.found[source]['data_differs'] = differ
        self.found[source]['loss'] = model.log_dict['l_pix']

    def average(self) -> None:
        """Two ranks make the step of one process with both batches, embedding included."""
        torch.manual_seed(0)
        both = self.build('learned', 'both')
        torch.manual_seed(0)
        alone = self.build('learned', f'alone{self.rank}', alone=True)
        for iteration in (1, 2):
            parts = [random_batch(10 * iteration + rank) for rank in range(self.world)]
            whole = {k: torch.cat([p[k] for p in parts]) for k in ('lq', 'gt', 'degradation')}
            step(both, iteration, parts[self.rank])
            step(alone, iteration, whole)
            if iteration == 1:
                self.found['gradient_gap'] = gap(both, alone, 'grad')
        self.found['weight_gap'] = gap(both, alone, 'data')


def gap(both, alone, kind: str) -> float:
    """Largest difference between the embeddings of both models, relative to the largest value."""
    first, second = (
        torch.cat([getattr(p, kind).flatten() for p in m.conditioning.network.bare.parameters()])
        for m in (both, alone)
    )
    return ((first - second).abs().max() / second.abs().max()).item()


def main(folder: str) -> None:
    import unfoldldm_basicsr  # noqa: F401

    torch.set_num_threads(1)
    distributed.init_process_group('gloo')
    job = Job(Path(folder))
    if job.rank == 0:
        job.build('label', 'photos_first', alone=True)  # writes the photos
    distributed.barrier()
    for source in SOURCES:
        job.train(source)
    job.average()
    if job.rank == 0:
        Path(folder, 'found.json').write_text(json.dumps(job.found), encoding='utf-8')
    distributed.destroy_process_group()


@pytest.fixture(scope='module')
def found(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp('job')
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    result = run_python(*launcher, __file__, str(folder), cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / 'found.json').read_text(encoding='utf-8'))


@pytest.mark.parametrize('source', SOURCES)
def test_replicas_of_network_and_embedding_stay_bit_identical(found, source):
    values = dict(found[source])
    assert values.pop('loss') > 0
    assert set(values) >= {'start', 'net_g', 'net_g_ema', 'net_e', 'data_differs'}
    assert all(values.values()), values


def test_the_gradient_of_the_embedding_is_averaged_over_the_ranks(found):
    assert found['gradient_gap'] < 1e-3
    assert found['weight_gap'] < 1e-2


if __name__ == '__main__':
    main(sys.argv[1])
