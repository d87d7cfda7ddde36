"""Which class a clip is of: cross entropy, for fine-tuning."""

import jax
import jax.numpy as jnp
import optax


def loss(
  logits: jax.Array, label: jax.Array, smoothing: float
) -> tuple[jax.Array, jax.Array]:
  """The mean cross entropy of the clips whose class is known, and accuracy.

  The target of a clip is 1 - a at its class plus a / C at each of the C
  classes (Szegedy et al., 2016).

  Args:
    logits: [N, C].
    label: int32 [N], in [0, C); -1: unknown, and the clip does not count.
    smoothing: a.

  Returns:
    The loss in nats and the share that is right, float32 [] each; both are 0
    where no class is known.
  """
  logits = logits.astype(jnp.float32)
  known = label >= 0
  target = optax.smooth_labels(
    jax.nn.one_hot(label, logits.shape[1]), smoothing
  )
  nats = optax.softmax_cross_entropy(logits, target)
  right = logits.argmax(axis=1) == label
  count = jnp.maximum(known.sum(), 1)
  return jnp.where(known, nats, 0.0).sum() / count, (
    known & right
  ).sum() / count
