"""The train step of benchmarks/step.py in PyTorch, as a process that is asked.

    PYTHON benchmarks/torch_step.py '{"compile": false, ...}'

PYTHON is of an environment with PyTorch; nothing else is imported. The towers
are those of calince_jax/models/, with as many parameters: attention is
`F.scaled_dot_product_attention`, the optimizer is the fused AdamW. The shape of
the step is the argument, see `step.peer_shape`. It prints what it is, then for
each line of its input takes one step and prints what that took.
"""

import json
import math
import sys
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
  """Multi-head attention of x to `memory`: [B, L, W], [B, M, W] -> [B, L, W].

  Self-attention makes q, k and v by one product.
  """

  def __init__(self, width, num_heads, across):
    super().__init__()
    self.num_heads = num_heads
    self.q = nn.Linear(width, width) if across else None
    self.kv = nn.Linear(width, (2 if across else 3) * width)
    self.out = nn.Linear(width, width)

  def forward(self, x, memory=None, mask=None):
    projected = self.kv(x if memory is None else memory)
    q = () if memory is None else (self.q(x),)
    parts = *q, *projected.chunk(3 - len(q), dim=-1)
    split = [
      part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts
    ]
    y = F.scaled_dot_product_attention(*split, attn_mask=mask)
    return self.out(y.transpose(1, 2).flatten(2))


def norm(width):
  return nn.LayerNorm(width, eps=1e-6)


def mlp(width):
  return nn.Sequential(
    nn.Linear(width, 4 * width),
    nn.GELU(approximate="tanh"),
    nn.Linear(4 * width, width),
  )


class Block(nn.Module):
  """One pre-normalised block."""

  def __init__(self, width, num_heads):
    super().__init__()
    self.attention_norm, self.mlp_norm = norm(width), norm(width)
    self.attention = Attention(width, num_heads, across=False)
    self.mlp = mlp(width)

  def forward(self, x, mask=None):
    x = x + self.attention(self.attention_norm(x), mask=mask)
    return x + self.mlp(self.mlp_norm(x))


class Stack(nn.Module):
  """Blocks and a final norm."""

  def __init__(self, width, depth, num_heads):
    super().__init__()
    self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
    self.norm = norm(width)

  def forward(self, x, mask=None):
    for block in self.blocks:
      x = block(x, mask)
    return self.norm(x)


class Pooling(nn.Module):
  """Attention with a learned query: [B, L, W] -> [B, W]."""

  def __init__(self, width, num_heads):
    super().__init__()
    self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
    self.attention = Attention(width, num_heads, across=True)
    self.norm = norm(width)
    self.mlp = mlp(width)

  def forward(self, x, mask=None):
    query = self.query.expand(len(x), -1, -1)
    pooled = self.attention(query, x, mask)
    return (pooled + self.mlp(self.norm(pooled)))[:, 0]


class Video(nn.Module):
  """calince_jax/models/video_vit.py."""

  def __init__(self, size, temporal_depth, tubelet, num_frames, image_size):
    super().__init__()
    self.tubelet, (t, p) = tubelet, tubelet
    width, heads = size["width"], size["num_heads"]
    T, N = num_frames // t, (image_size // p) ** 2
    self.embedding = nn.Linear(t * p * p * 3, width)
    self.space = nn.Parameter(0.02 * torch.randn(N, width))
    self.time = nn.Parameter(0.02 * torch.randn(T, 1, width))
    self.spatial = Stack(**size)
    self.temporal = Stack(width, temporal_depth, heads)
    self.pooling = Pooling(width, heads)

  def forward(self, video):
    B, T, H, W, C = video.shape
    t, p = self.tubelet
    x = video.float()
    x = (x - x.mean(dim=(1, 2, 3, 4), keepdim=True)) / 64.0
    x = x.reshape(B, T // t, t, H // p, p, W // p, p, C)
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7)
    x = x.reshape(B, T // t, (H // p) * (W // p), t * p * p * C)
    x = self.embedding(x) + self.space + self.time
    B, T, N, W = x.shape
    x = self.spatial(x.reshape(B * T, N, W)).reshape(B, T, N, W)
    x = self.temporal(x.transpose(1, 2).reshape(B * N, T, W))
    x = x.reshape(B, N, T, W).transpose(1, 2).reshape(B, T * N, W)
    return self.pooling(x)


class Text(nn.Module):
  """calince_jax/models/text.py."""

  def __init__(self, size, vocab_size, length):
    super().__init__()
    width = size["width"]
    self.embedding = nn.Embedding(vocab_size, width)
    self.position = nn.Parameter(0.02 * torch.randn(length, width))
    self.stack = Stack(**size)
    self.pooling = Pooling(width, size["num_heads"])

  def forward(self, ids, mask):
    mask = mask[:, None, None, :]
    x = self.stack(self.embedding(ids) + self.position, mask)
    return self.pooling(x, mask)


class Towers(nn.Module):
  """Both towers, their projections and the temperature."""

  def __init__(self, shape):
    super().__init__()
    self.video = Video(
      shape.video,
      shape.temporal_depth,
      shape.tubelet,
      shape.num_frames,
      shape.image_size,
    )
    self.text = Text(shape.text, shape.vocab_size, shape.text_length)
    D = shape.embedding_dim
    self.video_projection = nn.Linear(shape.video["width"], D, bias=False)
    self.text_projection = nn.Linear(shape.text["width"], D, bias=False)
    self.log_scale = nn.Parameter(torch.tensor(math.log(shape.logit_scale)))

  def forward(self, video, ids, mask):
    """InfoNCE in both directions, float32 []."""
    embeddings = (
      self.video_projection(self.video(video)),
      self.text_projection(self.text(ids, mask)),
    )
    v, t = (F.normalize(x.float(), dim=1) for x in embeddings)
    S = self.log_scale.exp() * (v @ t.T)
    labels = torch.arange(len(S), device=S.device)
    return (F.cross_entropy(S, labels) + F.cross_entropy(S.T, labels)) / 2


def make_step(shape, device):
  """The function that takes one step and returns its loss, and the towers.

  As ours: gradients clipped by their global norm, AdamW, and an average of the
  parameters.
  """
  torch.manual_seed(0)
  towers = Towers(shape).to(device)
  parameters = list(towers.parameters())
  averages = [parameter.detach().clone() for parameter in parameters]
  optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
  forward = torch.compile(towers) if shape.compile else towers
  B, T, S = shape.batch, shape.num_frames, shape.image_size
  batch = (
    torch.randint(0, 256, (B, T, S, S, 3), dtype=torch.uint8, device=device),
    torch.randint(0, shape.vocab_size, (B, shape.text_length), device=device),
    torch.ones(B, shape.text_length, dtype=torch.bool, device=device),
  )
  dtype = getattr(torch, shape.dtype)

  def step():
    optimizer.zero_grad()
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
      loss = forward(*batch)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(averages, parameters, 0.001)
    return loss.item()  # waits for the device

  return step, towers


def main():
  shape = SimpleNamespace(**json.loads(sys.argv[1]))
  device = "cuda" if torch.cuda.is_available() else "cpu"
  if device == "cuda":  # TF32 for products of float32, as XLA does there
    torch.set_float32_matmul_precision("high")
  step, towers = make_step(shape, device)
  step()  # compiles
  print(
    json.dumps(
      {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in towers.parameters()),
      }
    ),
    flush=True,
  )
  for _ in sys.stdin:
    start, cpu = time.perf_counter(), time.process_time()
    loss = step()
    print(
      json.dumps(
        {
          "seconds": time.perf_counter() - start,
          "cpu": time.process_time() - cpu,
          "loss": loss,
        }
      ),
      flush=True,
    )


if __name__ == "__main__":
  main()
