"""`python -m calince_jax.data.synthetic`, see corpus.py."""

from absl import flags

from calince_jax import cli
from calince_jax.data.synthetic import corpus, scene


def main() -> None:
  names = (
    "num_clips mismatch seed size num_val num_test max_objects style"
    " num_workers"
  )
  values = flags.FLAGS.flag_values_dict()
  corpus.generate(
    values["out"], **{name: values[name] for name in names.split()}
  )


if __name__ == "__main__":
  flags.DEFINE_string("out", None, "Folder to write.", required=True)
  flags.DEFINE_integer("num_clips", 4000, "Clips of the training split.")
  flags.DEFINE_float("mismatch", 0.3, "Fraction of wrong training captions.")
  flags.DEFINE_integer("seed", 0, "Seed of the clips.")
  flags.DEFINE_integer("size", 64, "Height and width in pixels.")
  flags.DEFINE_integer("num_val", None, "Default: an eighth of num_clips.")
  flags.DEFINE_integer("num_test", None, "Default: an eighth of num_clips.")
  flags.DEFINE_integer("max_objects", 3, "Things in a clip, at most.")
  flags.DEFINE_enum(
    "style",
    "varied",
    scene.STYLES,
    "plain: easy, with captions of bare words; hard: dark, small, static",
  )
  flags.DEFINE_integer("num_workers", 2, "Processes.")
  cli.run(main)
