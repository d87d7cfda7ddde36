"""What is advised where training waits for data is a thing that would help."""

from calince_jax.training.input_advice import advice
from configs import base


def advised(**changes):
  return advice(base.get_config().data.to_dict() | changes)


def test_the_advice_is_about_the_stages_that_there_are():
  plain = advised(image_size=200)
  assert "records are read, and 8 frames" in plain
  assert "--short_side near 230" in plain and "config.data.cache" in plain
  assert "resize=" not in plain and "jitter" not in plain
  assert "resize=bilinear" in advised(resize="antialiased")
  cached = advised(cache=True)
  assert "are read" not in cached and "--short_side" in cached
  decoded = advised(cache=True, min_crop_area=1.0, resize="antialiased")
  for useless in ("--short_side", "resize", "num_frames", "disk"):
    assert useless not in decoded
  assert "jitter=0" in advised(cache=True, min_crop_area=1, colour_jitter=0.3)
