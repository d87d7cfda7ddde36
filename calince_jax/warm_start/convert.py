"""Arrays of published architectures, as the parameters of our towers.

Paths are those of a tower whose blocks are not scanned: `spatial/block_0/...`.
Their kernels are [outputs, inputs], ours [inputs, outputs]; ours of attention
have an axis for heads.
"""

from collections.abc import Callable, Mapping

import numpy as np

from calince_jax.models import i3d, transformer
from calince_jax.warm_start.weights import Weights

Arrays = dict[str, np.ndarray]

# Their module for each of ours in a block, by `model_type`.
_ATTENTION = ("query", "key", "value", "out")
_VIT_BLOCK = {
  "attention_norm": "layernorm_before",
  "query": "attention.attention.query",
  "key": "attention.attention.key",
  "value": "attention.attention.value",
  "out": "attention.output.dense",
  "mlp_norm": "layernorm_after",
  "mlp/in": "intermediate.dense",
  "mlp/out": "output.dense",
}
_DINOV2_BLOCK = _VIT_BLOCK | {
  "attention_norm": "norm1",
  "mlp_norm": "norm2",
  "mlp/in": "mlp.fc1",
  "mlp/out": "mlp.fc2",
}
_CLIP_BLOCK = {
  "attention_norm": "layer_norm1",
  "query": "self_attn.q_proj",
  "key": "self_attn.k_proj",
  "value": "self_attn.v_proj",
  "out": "self_attn.out_proj",
  "mlp_norm": "layer_norm2",
  "mlp/in": "mlp.fc1",
  "mlp/out": "mlp.fc2",
}
_BERT_BLOCK = {
  "query": "attention.self.query",
  "key": "attention.self.key",
  "value": "attention.self.value",
  "out": "attention.output.dense",
  "attention_norm": "attention.output.LayerNorm",
  "mlp/in": "intermediate.dense",
  "mlp/out": "output.dense",
  "mlp_norm": "output.LayerNorm",
}
_DISTILBERT_BLOCK = {
  "query": "attention.q_lin",
  "key": "attention.k_lin",
  "value": "attention.v_lin",
  "out": "attention.out_lin",
  "attention_norm": "sa_layer_norm",
  "mlp/in": "ffn.lin1",
  "mlp/out": "ffn.lin2",
  "mlp_norm": "output_layer_norm",
}


def convert(
  weights: Weights, model_type: str, kind: str, size: transformer.Size | None
) -> Arrays:
  """The parameters of a tower that a folder has, by path.

  Args:
    weights: of the folder.
    model_type: of its config.json.
    kind: `video` or `text`.
    size: of the tower, if it has one.

  Raises:
    UserError: an array is missing or of another shape.
  """
  return _CONVERTERS[kind][model_type](weights, size)


def projection(weights: Weights, kind: str) -> np.ndarray | None:
  """CLIP's, [width, D], from a feature to its embedding; None: has none."""
  name = {"video": "visual_projection", "text": "text_projection"}[kind]
  weights.prefix = ""
  full = f"{name}.weight"
  return weights.take(full).T if full in weights else None


def _vit(weights, size):
  return (
    _vit_embeddings(weights)
    | _blocks(weights, size, _VIT_BLOCK, "spatial", "encoder.layer")
    | _norm(weights, "spatial/norm", "layernorm")
  )


def _dinov2(weights, size):
  arrays = (
    _vit_embeddings(weights)
    | _blocks(weights, size, _DINOV2_BLOCK, "spatial", "encoder.layer")
    | _norm(weights, "spatial/norm", "layernorm")
  )
  for i in range(size.depth):
    for n, name in ((1, "attention"), (2, "mlp")):
      arrays[f"spatial/block_{i}/{name}_scale"] = weights.take(
        f"encoder.layer.{i}.layer_scale{n}.lambda1"
      )
  return arrays


def _vit_embeddings(weights):
  return {
    "patch_embedding/kernel": patches(
      weights.take("embeddings.patch_embeddings.projection.weight")
    ),
    "patch_embedding/bias": weights.take(
      "embeddings.patch_embeddings.projection.bias"
    ),
    "class_token": weights.take("embeddings.cls_token")[0],
    "position": weights.take("embeddings.position_embeddings")[0],
  }


def _clip(weights, size):
  kernel = weights.take("embeddings.patch_embedding.weight")
  return (
    {
      "patch_embedding/kernel": patches(kernel),
      "class_token": weights.take("embeddings.class_embedding")[None],
      "position": weights.take("embeddings.position_embedding.weight"),
    }
    | _norm(weights, "input_norm", "pre_layrnorm")
    | _blocks(weights, size, _CLIP_BLOCK, "spatial", "encoder.layers")
    | _norm(weights, "spatial/norm", "post_layernorm")
  )


def _siglip(weights, size):
  kernel = weights.take("embeddings.patch_embedding.weight")
  return (
    {
      "patch_embedding/kernel": patches(kernel),
      "patch_embedding/bias": weights.take("embeddings.patch_embedding.bias"),
      "position": weights.take("embeddings.position_embedding.weight"),
    }
    | _blocks(weights, size, _CLIP_BLOCK, "spatial", "encoder.layers")
    | _norm(weights, "spatial/norm", "post_layernorm")
    | _siglip_pooling(weights, size)
  )


def _siglip_pooling(weights, size):
  """Its query, key and value are one array."""
  arrays = {"pooling/query": weights.take("head.probe")}
  kernels = np.split(weights.take("head.attention.in_proj_weight"), 3)
  biases = np.split(weights.take("head.attention.in_proj_bias"), 3)
  for name, kernel, bias in zip(_ATTENTION, kernels, biases, strict=False):
    arrays |= _to_heads(f"pooling/attention/{name}", kernel, bias, size)
  arrays |= _attention_part(
    weights, "pooling/attention/out", "head.attention.out_proj", size
  )
  arrays |= _norm(weights, "pooling/norm", "head.layernorm")
  for name, theirs in (("in", "fc1"), ("out", "fc2")):
    arrays |= _dense(weights, f"pooling/mlp/{name}", f"head.mlp.{theirs}")
  return arrays


def _i3d(weights, size):
  """Each batch norm becomes part of its convolution.

  Of x it makes (x - mean) / sqrt(variance + 1e-3) + offset.
  """
  del size
  arrays = {}
  for layer, _ in i3d.LAYERS:
    names = [f"{layer}.{branch}" for branch, _ in i3d.BRANCHES]
    for name in names if layer.startswith("Mixed") else [layer]:
      if layer.startswith("MaxPool"):
        continue
      path = name.replace(".", "/")
      factor = 1 / np.sqrt(weights.take(f"{name}.variance") + np.float32(1e-3))
      mean, offset = (weights.take(f"{name}.{x}") for x in ("mean", "offset"))
      arrays[f"{path}/kernel"] = weights.take(f"{name}.weight") * factor
      arrays[f"{path}/bias"] = offset - mean * factor
  return arrays


def _bert(weights, size):
  """The row of the first token type is part of every position."""
  types = weights.take("embeddings.token_type_embeddings.weight")
  return _bert_form(weights, size, _BERT_BLOCK, "encoder.layer", types[0])


def _distilbert(weights, size):
  return _bert_form(weights, size, _DISTILBERT_BLOCK, "transformer.layer", 0.0)


def _bert_form(weights, size, block, blocks, token_type):
  position = weights.take("embeddings.position_embeddings.weight")
  return (
    {
      "embedding/embedding": weights.take("embeddings.word_embeddings.weight"),
      "position": position + token_type,
    }
    | _norm(weights, "embedding_norm", "embeddings.LayerNorm")
    | _blocks(weights, size, block, "transformer", blocks)
  )


def _clip_text(weights, size):
  return (
    {
      "embedding/embedding": weights.take("embeddings.token_embedding.weight"),
      "position": weights.take("embeddings.position_embedding.weight"),
    }
    | _blocks(weights, size, _CLIP_BLOCK, "transformer", "encoder.layers")
    | _norm(weights, "transformer/norm", "final_layer_norm")
  )


_CONVERTERS: Mapping[str, Mapping[str, Callable]] = {
  "video": {
    "vit": _vit,
    "dinov2": _dinov2,
    "i3d": _i3d,
    "clip": _clip,
    "clip_vision_model": _clip,
    "siglip": _siglip,
    "siglip_vision_model": _siglip,
  },
  "text": {
    "bert": _bert,
    "distilbert": _distilbert,
    "clip": _clip_text,
    "clip_text_model": _clip_text,
  },
}


# ------------------------------------------------------------------- parts


def patches(kernel: np.ndarray) -> np.ndarray:
  """A convolution [W, 3, p, p] as a product with patches, [p * p * 3, W]."""
  return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])


def _blocks(weights, size, block, ours, theirs):
  arrays = {}
  for i in range(size.depth):
    for name, module in block.items():
      source = f"{theirs}.{i}.{module}"
      if name in _ATTENTION:
        path = f"{ours}/block_{i}/attention/{name}"
        arrays |= _attention_part(weights, path, source, size)
      elif name.endswith("norm"):
        arrays |= _norm(weights, f"{ours}/block_{i}/{name}", source)
      else:
        arrays |= _dense(weights, f"{ours}/block_{i}/{name}", source)
  return arrays


def _attention_part(weights, path, source, size):
  W = size.width
  kernel = weights.take(f"{source}.weight", (W, W))
  bias = weights.take(f"{source}.bias", (W,))
  if path.endswith("/out"):
    H = size.num_heads
    return {f"{path}/kernel": kernel.T.reshape(H, -1, W), f"{path}/bias": bias}
  return _to_heads(path, kernel, bias, size)


def _to_heads(path, kernel, bias, size):
  W, H = size.width, size.num_heads
  return {
    f"{path}/kernel": kernel.T.reshape(W, H, -1),
    f"{path}/bias": bias.reshape(H, -1),
  }


def _dense(weights, path, source):
  return {
    f"{path}/kernel": weights.take(f"{source}.weight").T,
    f"{path}/bias": weights.take(f"{source}.bias"),
  }


def _norm(weights, path, source):
  return {
    f"{path}/scale": weights.take(f"{source}.weight"),
    f"{path}/bias": weights.take(f"{source}.bias"),
  }
