"""The contrastive losses of PyTorch packages, to measure ours against."""

import importlib.util
from collections.abc import Callable


def turns(
  open_clip: str, N: int, D: int, dtype: str
) -> dict[str, Callable[[], None]]:
  """Functions that compute a loss and its gradient once, and wait.

  Args:
    open_clip: path of the package's loss.py, which needs nothing but PyTorch.
    N: pairs.
    D: of the embeddings.
    dtype: `float32` or `bfloat16`.

  Returns:
    By name; on a GPU the Triton kernels too, as far as they can be imported.
  """
  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  spec = importlib.util.spec_from_file_location("open_clip_loss", open_clip)
  losses = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(losses)

  def unit():
    x = torch.randn(N, D, device=device)
    x = torch.nn.functional.normalize(x, dim=1).to(getattr(torch, dtype))
    return x.requires_grad_()

  def scalar(value):
    return torch.tensor(value, device=device, requires_grad=True)

  video, text = unit(), unit()
  scale, log_scale, bias = scalar(14.3), scalar(2.66), scalar(-10.0)
  clip, siglip = losses.ClipLoss(), losses.SigLipLoss()
  functions = {
    "open_clip ClipLoss": lambda: clip(video, text, scale),
    "open_clip SigLipLoss": lambda: siglip(video, text, scale, bias),
  }
  if device == "cuda" and importlib.util.find_spec("siglip_kernel"):
    from siglip_kernel import fused_siglip_loss

    functions["siglip-kernel"] = lambda: fused_siglip_loss(
      video, text, log_scale, bias
    )
  if device == "cuda" and importlib.util.find_spec("inf_cl"):
    from inf_cl import cal_flash_loss

    functions["inf-cl"] = lambda: (
      cal_flash_loss(video, text, scale=scale).mean()
      + cal_flash_loss(text, video, scale=scale).mean()
    )

  def turn_of(function):
    def turn():
      for x in (video, text, scale, log_scale, bias):
        x.grad = None
      function().backward()
      if device == "cuda":
        torch.cuda.synchronize()

    return turn

  return {name: turn_of(function) for name, function in functions.items()}
