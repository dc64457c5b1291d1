"""VLU-Net from its parameters in plain PyTorch: the straightforward side of the comparisons.

Prompts are replicated over the batch, layer norm works in token layout, queries and keys are
normalised one by one. Reads the parameters of the package's network, so that both give equal
outputs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

Params = dict[str, Tensor]


def plain_layer_norm(p: Params, name: str, x: Tensor) -> Tensor:
    """B C H W -> tokens B HW C -> normalised -> B C H W."""
    b, c, h, w = x.shape
    tokens = x.reshape(b, c, h * w).transpose(1, 2).contiguous()
    mean = tokens.mean(-1, keepdim=True)
    variance = tokens.var(-1, keepdim=True, unbiased=False)
    tokens = (tokens - mean) / torch.sqrt(variance + 1e-5) * p[f'{name}.weight'] + p[f'{name}.bias']
    return tokens.transpose(1, 2).contiguous().reshape(b, c, h, w)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """Restormer's channel attention as written in its paper."""
    b, c, h, w = v.shape
    q, k, v = (t.reshape(b, len(temperature), -1, h * w) for t in (q, k, v))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    attention = (q @ k.transpose(-2, -1) * temperature).softmax(dim=-1)
    return (attention @ v).reshape(b, c, h, w)


def depthwise(p: Params, name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, p[f'{name}.weight'], padding=1, groups=x.shape[1])


def plain_self_attention(p: Params, name: str, x: Tensor) -> Tensor:
    qkv = depthwise(p, f'{name}.qkv_dwconv', F.conv2d(x, p[f'{name}.qkv.weight']))
    q, k, v = qkv.chunk(3, dim=1)
    out = plain_attention(q, k, v, p[f'{name}.temperature'])
    return F.conv2d(out, p[f'{name}.project_out.weight'])


def plain_block(p: Params, name: str, x: Tensor) -> Tensor:
    x = x + plain_self_attention(p, f'{name}.attn', plain_layer_norm(p, f'{name}.norm1.body', x))
    h = F.conv2d(plain_layer_norm(p, f'{name}.norm2.body', x), p[f'{name}.ffn.project_in.weight'])
    a, b = depthwise(p, f'{name}.ffn.dwconv', h).chunk(2, dim=1)
    return x + F.conv2d(F.gelu(a) * b, p[f'{name}.ffn.project_out.weight'])


def plain_gradient_step(p: Params, name: str, x: Tensor, y: Tensor, d: Tensor) -> Tensor:
    weights = F.linear(d, p[f'{name}.linear.weight'], p[f'{name}.linear.bias']).softmax(dim=1)
    prompts = p[f'{name}.prompt_param'].repeat(len(x), 1, 1, 1, 1)  # B N p S S
    prompt = (prompts * weights[:, :, None, None, None]).sum(dim=1)
    prompt = F.interpolate(prompt, x.shape[-2:], mode='bilinear')
    q, v = depthwise(p, f'{name}.phi.qv_dwconv', F.conv2d(x, p[f'{name}.phi.qv.weight'])).chunk(
        2, 1
    )
    k = depthwise(p, f'{name}.phi.k_dwconv', F.conv2d(prompt, p[f'{name}.phi.k.weight']))
    phi = plain_attention(q, k, v, p[f'{name}.phi.temperature'])
    phi = F.conv2d(phi, p[f'{name}.phi.project_out.weight'])
    return x - p[f'{name}.r'] * plain_self_attention(p, f'{name}.phit', phi - y)


def plain_stage(p: Params, name: str, x: Tensor, y: Tensor, d: Tensor) -> Tensor:
    x = plain_gradient_step(p, f'{name}.gradient_descent', x, y, d)
    block = 0
    while f'{name}.denoiser.blocks.{block}.norm1.body.weight' in p:
        x = plain_block(p, f'{name}.denoiser.blocks.{block}', x)
        block += 1
    return x


def plain_vlunet(p: Params, image: Tensor, d: Tensor) -> Tensor:
    """VLU-Net from its parameters; sides must be multiples of 8."""

    def down(name: str, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(F.conv2d(x, p[f'{name}.body.0.weight'], padding=1), 2)

    def up(name: str, x: Tensor) -> Tensor:
        return F.pixel_shuffle(F.conv2d(x, p[f'{name}.body.0.weight'], padding=1), 2)

    x1 = F.conv2d(image, p['patch_embed.proj.weight'], padding=1)
    y1 = F.conv2d(image, p['patch_embed_i.proj.weight'], padding=1)
    x1 = plain_stage(p, 'encoder_level1', x1, y1, d)
    y2 = down('down1_2', y1)
    x2 = plain_stage(p, 'encoder_level2', down('down1_2', x1), y2, d)
    y3 = down('down2_3_i', y2)
    x3 = plain_stage(p, 'encoder_level3', down('down2_3', x2), y3, d)
    y = down('down3_4_i', y3)
    x = plain_stage(p, 'latent', down('down3_4', x3), y, d)
    x = F.conv2d(torch.cat([up('up4_3', x), x3], 1), p['reduce_chan_level3.weight'])
    y = F.conv2d(torch.cat([up('up4_3_i', y), y3], 1), p['reduce_chan_level3_img.weight'])
    x = plain_stage(p, 'decoder_level3', x, y, d)
    x = F.conv2d(torch.cat([up('up3_2', x), x2], 1), p['reduce_chan_level2.weight'])
    y = F.conv2d(torch.cat([up('up3_2_i', y), y2], 1), p['reduce_chan_level2_img.weight'])
    x = plain_stage(p, 'decoder_level2', x, y, d)
    x, y = torch.cat([up('up2_1', x), x1], 1), torch.cat([up('up2_1_i', y), y1], 1)
    x = plain_stage(p, 'decoder_level1', x, y, d)
    x = plain_stage(p, 'refinement', x, y, d)
    return F.conv2d(x, p['output.weight'], padding=1) + image
