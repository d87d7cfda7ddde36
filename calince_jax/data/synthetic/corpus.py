"""A corpus of moving shapes as real mp4 files, with known wrong captions.

  python -m calince_jax.data.synthetic --out=DIR --num_clips=4000 \
      --mismatch=0.3 --seed=0

writes DIR/clips/*.mp4 (H.264, 8 frames a second, 2 seconds, a key frame every
second) and DIR/manifest.csv (video,text,id,label,split,group,matched).

A clip shows one to three things. Each has a shape, a colour, a size, a texture
and *two motions, one after the other*: "slides left, then spins" and "spins,
then slides left" are different clips, so one frame is never enough. Captions
name every shape, colour and motion; size and texture are sometimes left out.

* `label`: what the main (largest) thing does, as the ordered pair of the kinds
  of its motions, slide, spin, resize or blink: 12 classes, equally frequent.
* `group`: the combination of the clip, the (shape, colour, motions) of its
  things. A hash of it decides which split may show it, so no combination is
  in two splits, whatever the seeds.
* `matched`: in train, round(mismatch * num_clips) captions are exchanged among
  their clips (0); the others, and all of val and test, are right (1).

--style=plain is for quick studies: large things of one colour, each with one
motion, on grey, with captions of bare words ("red star up and blue ring grow");
the label is the main thing's motion.

--style=hard is what learning may fail to start on: dark pictures, small things
that stay where they are, nothing else that changes, and captions that name
shape, colour and place: of two things, some 14 to 22 words ("a tiny plain red
star at the top left and ..."). The label is the main thing's shape.

A clip depends on (seed, split, its index, max_objects, style) alone.
"""

import csv
import functools
import io
import json
import multiprocessing
import os
import time
from concurrent import futures
from pathlib import Path

import numpy as np

from calince_jax import errors
from calince_jax.data.input.mismatch_kinds import exchange
from calince_jax.data.synthetic import caption as synthetic_caption
from calince_jax.data.synthetic import scene as synthetic_scene
from calince_jax.data.synthetic import video as synthetic_video

COLUMNS = ("video", "text", "id", "label", "split", "group", "matched")
FORMAT_VERSION = 3


def generate(
  out: str | os.PathLike,
  *,
  num_clips: int,
  mismatch: float,
  seed: int,
  size: int = 64,
  num_val: int | None = None,
  num_test: int | None = None,
  max_objects: int = 3,
  style: str = "varied",
  num_workers: int = 2,
) -> Path:
  """Writes the corpus, or the clips that are missing of it.

  Args:
    out: folder to write: new, empty, or a corpus of the same arguments.
    num_clips: clips of the training split.
    mismatch: fraction of training captions that are wrong, in [0, 1).
    seed: at least 0.
    size: height and width in pixels, even, at least 16.
    num_val: clips of the validation split; None: an eighth of `num_clips`.
    num_test: clips of the test split; None: an eighth of `num_clips`.
    max_objects: 1, 2 or 3 things in a clip at most.
    style: one of synthetic_scene.STYLES.
    num_workers: processes; no influence on what is written.

  Returns:
    The path of the manifest.

  Raises:
    UserError: a bad argument, or a folder that holds something else.
  """
  eighth = -(-num_clips // 8)
  arguments = {
    "format_version": FORMAT_VERSION,
    "num_clips": num_clips,
    "mismatch": mismatch,
    "seed": seed,
    "size": size,
    "num_val": eighth if num_val is None else num_val,
    "num_test": eighth if num_test is None else num_test,
    "max_objects": max_objects,
    "style": style,
  }
  _check(arguments, num_workers)
  out = Path(out)
  _check_folder(out, arguments)
  counts = (num_clips, arguments["num_val"], arguments["num_test"])
  addresses = [
    (split, index)
    for split, count in zip(synthetic_scene.SPLITS, counts, strict=True)
    for index in range(count)
  ]
  manifest = out / "manifest.csv"
  table = None if manifest.exists() else _manifest(addresses, arguments)
  done, part = out / "synthetic.json", out / "synthetic.part.json"
  if not done.exists():
    out.mkdir(parents=True, exist_ok=True)
    _write_text(part, json.dumps(arguments, indent=2) + "\n")
  (out / "clips").mkdir(exist_ok=True)
  present = {path.name for path in (out / "clips").iterdir()}
  missing = [a for a in addresses if f"{_name(*a)}.mp4" not in present]
  _write_clips(out / "clips", missing, arguments, num_workers)
  if table is not None:
    _write_text(manifest, table)
  if not done.exists():
    os.replace(part, done)
  reused = len(addresses) - len(missing)
  print(f"synthetic: {len(addresses)} clips in {out} ({reused} reused)")
  return manifest


def _check(arguments: dict, num_workers: int) -> None:
  rules = {
    "num_clips": (arguments["num_clips"] >= 1, "at least 1"),
    "mismatch": (0 <= arguments["mismatch"] < 1, "in [0, 1)"),
    "seed": (arguments["seed"] >= 0, "at least 0"),
    "size": (
      arguments["size"] >= 16 and arguments["size"] % 2 == 0,
      "even (H.264 needs it) and at least 16",
    ),
    "num_val": (arguments["num_val"] >= 0, "at least 0"),
    "num_test": (arguments["num_test"] >= 0, "at least 0"),
    "max_objects": (arguments["max_objects"] in (1, 2, 3), "1, 2 or 3"),
    "style": (
      arguments["style"] in synthetic_scene.STYLES,
      f"one of {list(synthetic_scene.STYLES)}",
    ),
    "num_workers": (num_workers >= 1, "at least 1"),
  }
  given = {**arguments, "num_workers": num_workers}
  for name, (good, rule) in rules.items():
    if not good:
      raise errors.UserError(f"--{name}={given[name]}: it must be {rule}")


def _check_folder(out: Path, arguments: dict) -> None:
  """Raises unless the folder is new, or a corpus of these arguments."""
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return
  for known in (out / "synthetic.json", out / "synthetic.part.json"):
    if known.exists():
      before = json.loads(known.read_text(encoding="utf-8"))
      other = sorted({key for key, _ in before.items() ^ arguments.items()})
      if not other:
        return
      raise errors.UserError(
        f"{out} holds a corpus of other arguments ({', '.join(other)}; see "
        f"{known}); choose another --out, or delete that folder"
      )
  raise errors.UserError(
    f"{out} exists and is not a synthetic corpus; choose another --out"
  )


def _manifest(addresses: list[tuple[str, int]], arguments: dict) -> str:
  """Returns the table of all clips, the exchanged captions included."""
  draw = _scenes(arguments)
  scenes = [draw(*address) for address in addresses]
  texts = [synthetic_caption.caption(scene) for scene in scenes]
  groups = [synthetic_scene.combination(scene.things) for scene in scenes]
  num_train = arguments["num_clips"]  # they come first
  count = round(arguments["mismatch"] * num_train)
  source = np.arange(len(addresses))
  source[:num_train] = exchange(
    groups[:num_train], count, seed=arguments["seed"]
  )
  table = io.StringIO()
  writer = csv.writer(table, lineterminator="\n")
  writer.writerow(COLUMNS)
  for i, (split, index) in enumerate(addresses):
    name, text = _name(split, index), texts[source[i]]
    matched = int(source[i] == i)
    label, group = scenes[i].label, groups[i]
    writer.writerow(
      [f"clips/{name}.mp4", text, name, label, split, group, matched]
    )
  return table.getvalue()


def _write_clips(folder: Path, missing, arguments, num_workers) -> None:
  """Writes the missing clips in several processes, and prints progress."""
  make = functools.partial(
    _write_clip,
    folder=folder,
    size=arguments["size"],
    draw=_scenes(arguments),
  )
  if num_workers == 1 or len(missing) < 64:  # too few to start processes for
    _show_progress(map(make, missing), len(missing))
    return
  context = multiprocessing.get_context("spawn")
  with futures.ProcessPoolExecutor(num_workers, mp_context=context) as pool:
    _show_progress(pool.map(make, missing, chunksize=16), len(missing))


def _scenes(arguments: dict):
  """Returns the function (split, index) -> Scene of a corpus."""
  return functools.partial(
    synthetic_scene.sample_scene,
    arguments["seed"],
    max_objects=arguments["max_objects"],
    style=arguments["style"],
  )


def _write_clip(address, *, folder, size, draw) -> None:
  scene = draw(*address)
  synthetic_video.write_video(
    folder / f"{_name(*address)}.mp4", synthetic_video.render(scene, size=size)
  )


def _show_progress(finished, total: int) -> None:
  start = shown = time.monotonic()
  for count, _ in enumerate(finished, 1):
    now = time.monotonic()
    if now - shown > 2 or count == total:
      shown = now
      rate = count / (now - start)
      print(f"synthetic: {count}/{total} clips, {rate:.0f} clips/s", flush=True)


def _name(split: str, index: int) -> str:
  return f"{split}-{index:06d}"


def _write_text(path: Path, text: str) -> None:
  part = path.with_name(path.name + ".tmp")
  part.write_text(text, encoding="utf-8")
  os.replace(part, path)
