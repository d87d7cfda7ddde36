"""The model's parts: shapes, masks, time, choices, remat and scan."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY_MODEL, fresh_params

from calince_jax.models import transformer
from calince_jax.models.cali_nce import init_params

K = 3


@pytest.fixture
def batch(rng):
  return {
    "video": jnp.asarray(rng.integers(0, 256, (5, 4, 32, 32, 3)), jnp.uint8),
    "text_ids": jnp.asarray(rng.integers(5, 40, (5, 8)), jnp.int32),
    "text_mask": jnp.asarray(
      np.arange(8) < np.array([[8], [3], [5], [8], [4]])
    ),
    "pair_index": jnp.array([4, 7, 0, 3, 12], jnp.int32),
  }


STREAMS = dict.fromkeys(("negatives", "masking", "dropout"), jax.random.key(0))


@functools.cache
def program(config):
  """Jitted `apply` of a model, compiled once for all tests."""
  model = config.build()
  return jax.jit(
    lambda params, batch: model.apply(
      {"params": params}, batch, num_negatives=K, rngs=STREAMS
    )
  )


def run(config, batch, *, params=None):
  params = fresh_params(config) if params is None else params
  return params, program(config)(params, batch)


@functools.cache
def initial(config):
  """The parameters that training starts from."""
  return jax.jit(lambda: init_params(config.build(), 0))()


def test_outputs(batch):
  params, out = run(TINY_MODEL, batch, params=initial(TINY_MODEL))
  assert out["video"].shape == out["text"].shape == (5, 16)
  assert out["correspondence"].shape == (5, 1 + K)
  assert out["prediction"]["logits"].shape == (5, 8, 40)
  for name in ("video", "text"):
    np.testing.assert_allclose(np.linalg.norm(out[name], axis=1), 1, rtol=1e-4)
  np.testing.assert_allclose(out["logit_scale"], 14.3, rtol=1e-5)
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}


def test_the_embeddings_of_a_batch_are_about_its_mean(batch):
  """However alike the clips and captions are: they cannot be one point."""
  nearly_one_clip = batch["video"].at[:].set(batch["video"][0])
  nearly_one_clip = nearly_one_clip.at[:, 0, :8, :8].set(
    batch["video"][:, 0, :8, :8]
  )
  params, out = run(TINY_MODEL, batch | {"video": nearly_one_clip})
  model = TINY_MODEL.build()
  encoded = model.apply(
    {"params": params}, nearly_one_clip, method="encode_video"
  )
  projected = np.asarray(encoded["projected"])
  about_mean = projected - projected.mean(axis=0)
  np.testing.assert_allclose(out["video_centre"], projected.mean(0), rtol=1e-4)
  np.testing.assert_allclose(
    out["video"],
    about_mean / np.linalg.norm(about_mean, axis=1, keepdims=True),
    atol=1e-3,
  )
  # Without it all cosines are nearly 1.
  plain = dataclasses.replace(TINY_MODEL, centre=False)
  _, away = run(plain, batch | {"video": nearly_one_clip})
  others = ~np.eye(5, dtype=bool)
  assert (away["video"] @ away["video"].T)[others].mean() > 0.9
  assert (out["video"] @ out["video"].T)[others].mean() < 0


@pytest.mark.parametrize("task", ["caption", "latent"])
def test_predictive_tasks(batch, task):
  _, out = run(dataclasses.replace(TINY_MODEL, predictive_task=task), batch)
  prediction = out["prediction"]
  if task == "caption":
    # Token n is predicted at place n - 1, up to the last real one.
    np.testing.assert_array_equal(
      prediction["targets"][:, :-1], batch["text_ids"][:, 1:]
    )
    np.testing.assert_array_equal(
      prediction["mask"].sum(axis=1), batch["text_mask"].sum(axis=1) - 1
    )
  else:
    assert prediction["prediction"].shape == (5, 16)


def test_a_caption_is_predicted_from_what_stands_before(batch):
  config = dataclasses.replace(TINY_MODEL, predictive_task="caption")
  params, out = run(config, batch)
  changed = batch | {"text_ids": batch["text_ids"].at[:, 5].add(-1)}
  _, other = run(config, changed, params=params)
  a, b = (x["prediction"]["logits"] for x in (out, other))
  np.testing.assert_allclose(a[0, :5], b[0, :5], atol=1e-5)
  assert np.abs(a[0, 5] - b[0, 5]).max() > 1e-3


def test_masked_words_are_hidden_and_real(batch):
  params, out = run(TINY_MODEL, batch)
  chosen = np.asarray(out["prediction"]["mask"])
  assert (chosen.sum(axis=1) >= 1).all()
  assert not (chosen & ~np.asarray(batch["text_mask"])).any()
  hidden = batch | {
    "text_ids": jnp.where(chosen, TINY_MODEL.mask_id + 3, batch["text_ids"])
  }
  _, other = run(TINY_MODEL, hidden, params=params)
  # The same words are masked, whatever they are: the logits cannot tell.
  np.testing.assert_array_equal(chosen, other["prediction"]["mask"])
  np.testing.assert_allclose(
    out["prediction"]["logits"], other["prediction"]["logits"], atol=1e-5
  )


def test_the_predictive_head_looks_at_the_video(batch):
  params, out = run(TINY_MODEL, batch)
  _, other = run(
    TINY_MODEL, batch | {"video": 255 - batch["video"]}, params=params
  )
  a, b = (x["prediction"]["logits"] for x in (out, other))
  assert np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize("pooling", transformer.POOLINGS)
def test_padding_changes_nothing(batch, pooling):
  text = dataclasses.replace(TINY_MODEL.text, pooling=pooling)
  config = dataclasses.replace(TINY_MODEL, text=text)
  params, out = run(config, batch)
  ids = jnp.where(batch["text_mask"], batch["text_ids"], 9)
  _, other = run(config, batch | {"text_ids": ids}, params=params)
  np.testing.assert_allclose(out["text"], other["text"], atol=1e-6)


def test_the_order_of_time_matters(batch):
  params, out = run(TINY_MODEL, batch)
  _, other = run(
    TINY_MODEL, batch | {"video": batch["video"][:, ::-1]}, params=params
  )
  assert np.abs(out["video"] - other["video"]).max() > 1e-3


def test_negatives_are_other_texts(batch):
  config = dataclasses.replace(TINY_MODEL, head="cosine")
  _, out = run(config, batch, params=initial(config))
  cosine = out["video"] @ out["text"].T
  logits = out["correspondence"] / 10.0
  np.testing.assert_allclose(logits[:, 0], jnp.diagonal(cosine), atol=1e-5)
  for i in range(5):
    others = np.delete(np.asarray(cosine[i]), i)
    used = np.asarray(logits[i, 1:])
    distance = np.abs(used[:, None] - others[None]).min(axis=1)
    assert (distance < 1e-5).all()
    assert len(np.unique(used.round(5))) == K  # K different ones


def test_each_head_learns_from_half_of_the_pairs(batch):
  model = TINY_MODEL.build()
  params, _ = run(TINY_MODEL, batch)

  @functools.partial(jax.jit, static_argnames="name")
  def taught(params, *, name, chosen):
    """Which of the two heads the given pairs' logits teach."""

    def total(params):
      streams = dict.fromkeys(("negatives", "masking"), jax.random.key(0))
      out = model.apply(
        {"params": params}, batch, num_negatives=K, rngs=streams
      )
      return (out[name][:, 0] * chosen).sum()

    grads = jax.grad(total)(params)
    return [
      optax.global_norm(grads[f"correspondence_heads_{h}"]) for h in (0, 1)
    ]

  even = jnp.float32(batch["pair_index"] % 2 == 0)
  for chosen, learns in ((even, 1), (1 - even, 0)):
    for name, head in (("correspondence", learns), ("held_out", 1 - learns)):
      norms = taught(params, name=name, chosen=chosen)
      assert norms[head] > 0 and norms[1 - head] == 0, (name, head)


def test_one_head_learns_from_all_pairs_and_scores_them(batch):
  config = dataclasses.replace(TINY_MODEL, cross_fit=False)
  params, out = run(config, batch)
  assert "correspondence_heads_1" not in params
  np.testing.assert_array_equal(out["correspondence"], out["held_out"])


def test_the_cosines_are_of_the_pairs_that_the_head_sees(batch):
  config = dataclasses.replace(TINY_MODEL, head="cosine")
  _, out = run(config, batch, params=initial(config))
  np.testing.assert_allclose(
    out["cosine"], out["correspondence"] / 10.0, atol=1e-5
  )


def test_more_negatives_than_there_are(batch):
  one = jax.tree.map(lambda x: x[:1], batch)
  _, out = run(TINY_MODEL, one)
  assert out["correspondence"].shape == (1, 1)


@pytest.mark.parametrize("head", ["mlp", "bilinear", "cosine", "fusion"])
def test_heads_depend_on_both_sides(batch, head):
  config = dataclasses.replace(TINY_MODEL, head=head)
  model = config.build()
  params = fresh_params(config)

  @jax.jit
  def logits(batch):
    def both(model):
      return model.correspondence(
        model.encode_video(batch["video"]),
        model.encode_text(batch["text_ids"], batch["text_mask"]),
      )

    return model.apply({"params": params}, method=both)

  plain = logits(batch)
  assert plain.shape == (5,)
  other_video = logits(batch | {"video": 255 - batch["video"]})
  other_text = logits(batch | {"text_ids": batch["text_ids"][::-1]})
  assert np.abs(plain - other_video).max() > 1e-5
  assert np.abs(plain - other_text).max() > 1e-5


@functools.cache
def loss_and_grad(config):
  """Jitted, of the video tower alone."""
  model = config.build()

  def loss(params, video):
    variables = {"params": params}
    out = model.apply(variables, video, method="encode_video")["embedding"]
    return (out * jnp.arange(16)).sum()

  return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_number(batch, scan, remat):
  config = dataclasses.replace(TINY_MODEL, scan=scan)
  params = fresh_params(config)
  plain = loss_and_grad(config)(params, batch["video"])
  changed = dataclasses.replace(config, remat=remat)
  again = loss_and_grad(changed)(params, batch["video"])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    plain,
    again,
  )


def test_scan_equals_blocks_one_by_one(batch):
  size = dataclasses.replace(transformer.SIZES["mu"], depth=2)
  x = jnp.linspace(-1, 1, 2 * 5 * 32).reshape(2, 5, 32)

  def stack(scan):
    return transformer.Transformer(size.depth, size.num_heads, scan=scan)

  scanned = stack(True).init(jax.random.key(0), x)["params"]
  plain = {"norm": scanned["norm"]} | {
    f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], scanned["blocks"])
    for i in range(2)
  }
  np.testing.assert_allclose(
    stack(True).apply({"params": scanned}, x),
    stack(False).apply({"params": plain}, x),
    atol=1e-5,
  )


def test_bfloat16_computes_close_to_float32(batch):
  params, out = run(TINY_MODEL, batch)
  _, half = run(
    dataclasses.replace(TINY_MODEL, dtype="bfloat16"), batch, params=params
  )
  assert half["video"].dtype == jnp.float32
  difference = np.abs(out["video"] - half["video"]).max()
  assert 1e-5 < difference < 0.05


def test_dropout_needs_to_be_asked_for(batch):
  params, plain = run(TINY_MODEL, batch)
  model = dataclasses.replace(TINY_MODEL, dropout=0.5).build()
  key = jax.random.key(1)
  noisy = jax.jit(
    lambda params: model.apply(
      {"params": params},
      batch["video"],
      deterministic=False,
      rngs={"dropout": key},
      method="encode_video",
    )["embedding"]
  )(params)
  assert np.abs(plain["video"] - noisy).max() > 1e-3


def test_the_temperature_is_clamped(batch):
  params, _ = run(TINY_MODEL, batch)
  params = params | {"log_logit_scale": jnp.float32(9.0)}
  _, out = run(TINY_MODEL, batch, params=params)
  np.testing.assert_allclose(out["logit_scale"], 100, rtol=1e-4)


def test_clips_that_cannot_be_cut_are_named(batch):
  with pytest.raises(ValueError, match="tubelets"):
    run(TINY_MODEL, batch | {"video": batch["video"][:, :3]})


@pytest.mark.parametrize("name", ["Ti", "S", "B", "L", "H"])
def test_the_sizes_of_the_field(name):
  million = {"Ti": 5.4, "S": 21.3, "B": 85.1, "L": 302.3, "H": 630.0}[name]
  size = transformer.size(name)
  stack = transformer.Transformer(size.depth, size.num_heads)
  x = jax.ShapeDtypeStruct((1, 4, size.width), jnp.float32)
  params = jax.eval_shape(stack.init, jax.random.key(0), x)
  count = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
  assert abs(count - million) < 0.1 * million


def test_a_centred_clip_does_not_depend_on_its_brightness(batch):
  """What all pixels have in common is taken off; `scaled` keeps it."""
  dark = batch | {"video": batch["video"] // 4}
  light = batch | {"video": batch["video"] // 4 + 150}
  for pixels, same in (("centred", True), ("scaled", False)):
    video = dataclasses.replace(TINY_MODEL.video, pixels=pixels)
    config = dataclasses.replace(TINY_MODEL, video=video)
    params, out = run(config, dark)
    _, other = run(config, light, params=params)
    difference = np.abs(out["video"] - other["video"]).max()
    assert (difference < 1e-4) == same
