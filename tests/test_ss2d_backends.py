"""Scan backends other than plain PyTorch: choice, layouts, interpreter parity, compilation."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from helpers import run_python
from test_ss2d import NAMES, naive_selective_scan, relative_error, scan_inputs

from unfoldldm_basicsr.ops.ss2d import _torch, describe_backends, dispatch, set_scan_backend

PACKAGE = 'unfoldldm_basicsr.ops.ss2d'
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec('triton') is None, reason='triton is not installed'
)


@pytest.fixture(autouse=True)
def _fresh_choice():
    set_scan_backend(None)
    yield
    set_scan_backend(None)


def said(log, level: str) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelname == level]


@pytest.mark.parametrize(
    ('unusable', 'expected'),
    [((), 'mamba'), (('mamba',), 'triton'), (('mamba', 'triton'), 'torch')],
)
def test_the_first_usable_backend_is_taken_on_cuda(monkeypatch, log, unusable, expected):
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    monkeypatch.setattr(dispatch, '_why_not', lambda name: 'broken' if name in unusable else '')
    assert [dispatch._select('cuda') for _ in range(3)] == [expected] * 3
    (info,) = said(log, 'INFO')
    assert f"'{expected}'" in info
    warned = said(log, 'WARNING')
    assert len(warned) == (2 if expected == 'torch' else 0)
    assert all('broken' in text for text in warned)


def test_a_named_backend_wins_and_the_call_wins_over_the_environment(monkeypatch):
    monkeypatch.setattr(dispatch, '_why_not', lambda name: '')
    monkeypatch.setenv(dispatch.ENVIRONMENT, 'torch')
    assert dispatch._select('cuda') == 'torch'
    set_scan_backend('triton')
    assert dispatch._select('cuda') == 'triton'
    set_scan_backend(None)
    assert dispatch._select('cuda') == 'torch'


def test_cpu_tensors_always_use_torch(monkeypatch):
    monkeypatch.setattr(dispatch, '_why_not', lambda name: '')
    monkeypatch.setenv(dispatch.ENVIRONMENT, 'triton')
    assert dispatch.backend_for(torch.zeros(1)) is _torch


@pytest.mark.parametrize('failure', [
    subprocess.CalledProcessError(1, ['gcc', 'main.c']),  # no Python.h
    FileNotFoundError(2, 'No such file or directory', 'gcc'),
    AssertionError('libcuda.so cannot found!\nPlease run ldconfig'),
])  # fmt: skip
@pytest.mark.parametrize('stage', ['import', 'trial'])
def test_a_backend_that_breaks_is_passed_over_with_the_reason(monkeypatch, log, failure, stage):
    broken = Mock(side_effect=failure)
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    if stage == 'import':
        monkeypatch.setattr(dispatch.importlib, 'import_module', broken)
    else:
        monkeypatch.setattr(dispatch.importlib, 'import_module', lambda name: _torch)
        monkeypatch.setattr(dispatch, 'disagreement', broken)
    dispatch._why_not.cache_clear()
    try:
        notes = describe_backends()
        assert [dispatch._select('cuda') for _ in range(3)] == ['torch'] * 3
    finally:
        dispatch._why_not.cache_clear()
    reason = type(failure).__name__ + ': ' + str(failure).partition('\n')[0]
    warned = said(log, 'WARNING')
    assert len(warned) == 2
    built = isinstance(failure, (subprocess.SubprocessError, FileNotFoundError))
    assert ('apt install gcc python3-dev' in notes['triton']) == built
    for name, text in zip(('mamba', 'triton'), warned, strict=True):
        assert notes[name].startswith('not usable: ')
        assert reason in notes[name]
        assert name in text
        assert reason in text


def test_a_backend_that_computes_something_else_is_noticed():
    def swapped(gy, *inputs):
        gradients = _torch.backward(gy, *inputs)
        return (*gradients[:3], gradients[4], gradients[3], *gradients[5:])

    def undefined(*inputs):
        return _torch.forward(*inputs) * float('nan')

    device = torch.device('cpu')
    good = SimpleNamespace(forward=_torch.forward, backward=_torch.backward)
    assert dispatch.disagreement(good, device) == 0
    wrong = SimpleNamespace(forward=_torch.forward, backward=swapped)
    assert dispatch.disagreement(wrong, device) > 0.1
    wrong = SimpleNamespace(forward=undefined, backward=_torch.backward)
    assert not dispatch.disagreement(wrong, device) <= dispatch._TOLERANCE


def fake_extension():
    """``selective_scan_cuda`` with its demands on layouts and dtypes, computed by the oracle."""
    extension = ModuleType('selective_scan_cuda')

    def check(u, delta, A, B, C, D, z, bias):
        batch, dim, length = u.shape
        assert z is None
        assert delta.shape == u.shape
        assert B.shape == C.shape == (batch, 4, A.shape[1], length)
        assert A.shape[0] == D.shape[0] == bias.shape[0] == dim
        assert all(t.dtype == u.dtype and t.stride(-1) == 1 for t in (u, delta, B, C))
        assert all(t.dtype == torch.float32 for t in (A, D, bias))
        assert D.is_contiguous()
        assert bias.is_contiguous()

    def scan(u, delta, A, B, C, D, bias):
        double = (t.double() for t in (u, delta, A, B, C, D, bias))
        return naive_selective_scan(*double).to(u.dtype)

    def fwd(u, delta, A, B, C, D, z, bias, softplus):
        check(u, delta, A, B, C, D, z, bias)
        assert softplus is True
        states = torch.zeros(u.shape[0], u.shape[1], 1, 2 * A.shape[1])
        return [scan(u, delta, A, B, C, D, bias), states]

    def bwd(u, delta, A, B, C, D, z, bias, dout, states, out, dz, softplus, recompute_out_z):
        check(u, delta, A, B, C, D, z, bias)
        assert states.shape == (u.shape[0], u.shape[1], 1, 2 * A.shape[1])
        assert dout.shape == u.shape
        assert dout.dtype == u.dtype
        assert dout.stride(-1) == 1
        assert (out, dz, softplus, recompute_out_z) == (None, None, True, False)
        leaves = [t.detach().requires_grad_() for t in (u, delta, A, B, C, D, bias)]
        with torch.enable_grad():
            return list(torch.autograd.grad(scan(*leaves), leaves, dout))

    extension.fwd, extension.bwd = fwd, bwd
    return extension


@pytest.fixture
def mamba(monkeypatch):
    monkeypatch.setitem(sys.modules, 'selective_scan_cuda', fake_extension())
    monkeypatch.delitem(sys.modules, f'{PACKAGE}._mamba', raising=False)
    yield importlib.import_module(f'{PACKAGE}._mamba')
    sys.modules.pop(f'{PACKAGE}._mamba', None)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize('size', [(5, 7), (1, 9), (9, 1), (4, 4)])
def test_mamba_receives_valid_sequences_and_agrees(mamba, size, dtype, tolerance):
    inputs = [t.detach() for t in scan_inputs(*size, dtype=dtype)]
    gy = torch.randn(inputs[0].shape).to(dtype)
    got = (mamba.forward(*inputs), *mamba.backward(gy, *inputs))
    expected = (_torch.forward(*inputs), *_torch.backward(gy, *inputs))
    for name, a, b in zip(('y', *NAMES), got, expected, strict=True):
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        assert relative_error(a, b.double()) <= tolerance, name


PARITY = """
import json, sys, torch
from unfoldldm_basicsr.ops.ss2d import _torch, _triton

def compare(gy, *inputs):
    got = (_triton.forward(*inputs), *_triton.backward(gy, *inputs))
    inputs = [t.double().contiguous() for t in inputs]
    expected = (_torch.forward(*inputs), *_torch.backward(gy.double(), *inputs))
    errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, expected)]
    print('RESULT', json.dumps([errors, [a.shape == b.shape for a, b in zip(got, expected)]]))

torch.manual_seed(0)
grid, channels, d_state = (2, 2, 3), 37, 3
x, gy = torch.randn(*grid, channels), torch.randn(*grid, channels)
compare(
    gy, x, torch.randn(4, *grid, channels).permute(1, 2, 3, 0, 4),
    -torch.rand(4, channels, d_state) * 4, torch.randn(*grid, 4, 2 * d_state)[..., d_state:],
    torch.randn(*grid, 4, d_state), torch.randn(4, channels), torch.randn(4, channels),
)

# One sparse file: three times the stride of a direction is beyond 32 bits.
far, channels, d_state = 2**31 // 3 + 2**10, 4, 2
space = torch.from_file(sys.argv[1], shared=True, size=3 * far + 2**10, dtype=torch.bfloat16)

def spread(start, width):
    out = space.as_strided((1, 2, 3, 4, width), (0, 3 * width, width, far, 1), start)
    return out.copy_(torch.randn(out.shape))

x, gy = torch.randn(1, 2, 3, channels), torch.randn(1, 2, 3, channels)
A, D, bias = -torch.rand(4, channels, d_state), torch.randn(4, channels), torch.randn(4, channels)
compare(gy, x, spread(0, channels), A, spread(100, d_state), spread(200, d_state), D, bias)
"""


@needs_triton
def test_triton_agrees_in_the_interpreter_also_where_directions_lie_far_apart(tmp_path):
    done = run_python('-c', PARITY, str(tmp_path / 'space'), TRITON_INTERPRET='1')
    (tmp_path / 'space').unlink()
    results = [json.loads(line) for line in re.findall(r'RESULT (.*)', done.stdout)]
    assert len(results) == 2, f'exit status {done.returncode}: {done.stderr[-2000:]}'
    for (errors, same_shape), most in zip(results, (2e-6, 1e-2), strict=True):
        assert all(same_shape)  # the last one has gradients in bfloat16
        assert max(errors) <= most, dict(zip(('y', *NAMES), errors, strict=True))


@needs_triton
@pytest.mark.parametrize(('capability', 'd_state'), [(80, 1), (90, 16)])
def test_triton_kernels_compile_without_spilling_registers(tmp_path, capability, d_state):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    backend = importlib.import_module(f'{PACKAGE}._triton')
    kernels = backend.kernels
    forward = backend.tiling(4096, 96, d_state)
    adjoint = backend.tiling(4096, 96, d_state, adjoint=True)
    jobs = [
        (kernels.chunk_kernel, forward, {'ADJOINT': False, 'gy_ptr': None, 'grad_ptr': None}),
        (kernels.output_kernel, forward, {}),
        (kernels.chunk_kernel, adjoint, {'ADJOINT': True}),
        (kernels.carry_kernel, adjoint, {'REVERSE': True}),
        (kernels.adjoint_kernel, adjoint, {'SUB': backend.SUB}),
    ]
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    for kernel, cut, constants in jobs:
        constants = {**constants, 'BLOCK_N': cut.block_n, 'BLOCK_C': cut.block_c}
        kinds = {
            name: 'constexpr' if name in constants else '*fp32' if name.endswith('_ptr') else 'i32'
            for name in kernel.arg_names
        }
        compiled = triton.compile(
            ASTSource(fn=kernel, signature=kinds, constexprs=constants),
            target=GPUTarget('cuda', capability, 32),
            options={'num_warps': cut.warps, 'enable_fp_fusion': True},
        )
        binary = tmp_path / 'kernel.cubin'
        binary.write_bytes(compiled.asm['cubin'])
        usage = subprocess.run([tool, '-res-usage', binary], capture_output=True, text=True)
        stack = re.search(r'STACK:(\d+)', usage.stdout)
        assert stack, usage
        assert int(stack[1]) == 0, f'{kernel.fn.__name__}: {usage.stdout}'


@pytest.mark.gpu
@pytest.mark.parametrize('name', ['triton', 'mamba'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('d_state', [1, 16])
def test_a_backend_agrees_on_the_gpu(name, dtype, d_state):
    reason = dispatch._why_not(name)
    if reason:
        pytest.skip(reason)
    backend = importlib.import_module(f'{PACKAGE}._{name}')
    inputs = scan_inputs(61, 47, channels=40, d_state=d_state, dtype=dtype)
    inputs = [t.detach().cuda() for t in inputs]
    gy = torch.randn(inputs[0].shape).cuda().to(dtype)
    double = [t.double() for t in inputs]
    got = (backend.forward(*inputs), *backend.backward(gy, *inputs))
    expected = (_torch.forward(*double), *_torch.backward(gy.double(), *double))
    for key, a, b in zip(('y', *NAMES), got, expected, strict=True):
        assert relative_error(a, b) <= (2e-3 if dtype == torch.float32 else 3e-2), key
