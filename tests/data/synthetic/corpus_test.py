"""The synthetic corpus: what it shows, what it says, what is wrong in it."""

import collections
import csv
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from calince_jax import errors
from calince_jax.data.synthetic import caption as synthetic_caption
from calince_jax.data.synthetic import corpus
from calince_jax.data.synthetic import scene as synthetic_scene
from calince_jax.data.synthetic import video as synthetic_video

OPPOSITE = {
  "left": "right",
  "right": "left",
  "up": "down",
  "down": "up",
  "grow": "shrink",
  "shrink": "grow",
}


def small(out, **changes):
  arguments = {
    "num_clips": 20,
    "mismatch": 0.4,
    "seed": 3,
    "size": 16,
    "num_val": 5,
    "num_test": 5,
    "num_workers": 1,
    **changes,
  }
  return corpus.generate(out, **arguments)


def rows_of(manifest):
  with open(manifest, encoding="utf-8", newline="") as file:
    return list(csv.DictReader(file))


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in Path(folder).rglob("*")
    if path.is_file()
  }


def decode(path):
  with av.open(str(path)) as container:
    return [frame.to_ndarray(format="rgb24") for frame in container.decode()]


def scenes(split, count, **options):
  return [
    synthetic_scene.sample_scene(7, split, i, **options) for i in range(count)
  ]


def a_thing(**changes):
  thing = {
    "shape": "star",
    "colour": "red",
    "size": "medium",
    "texture": "plain",
    "motions": ("left", "spin"),
    "switch": 0.45,
    "travel": 0.3,
    "angle": 0.1,
    "turn": 2.4,
    "x": 0.7,
    "y": 0.5,
  }
  return synthetic_scene.Thing(**{**thing, **changes})


def backwards(thing):
  """The same thing in the film played backwards."""
  centre, radius, angle, _ = synthetic_scene.track(thing, 2)
  sizes = {r: size for size, r in synthetic_scene.RADIUS.items()}
  first, second = thing.motions
  return dataclasses.replace(
    thing,
    motions=(OPPOSITE.get(second, second), OPPOSITE.get(first, first)),
    switch=1 - thing.switch,
    size=sizes[radius[1]],
    angle=angle[1],
    turn=-thing.turn,
    x=centre[1, 0],
    y=centre[1, 1],
  )


def test_same_arguments_give_the_same_files_with_any_number_of_workers(
  tmp_path,
):
  size = {"num_clips": 66}
  small(tmp_path / "one", **size, num_workers=1)
  small(tmp_path / "two", **size, num_workers=2)
  assert contents(tmp_path / "one") == contents(tmp_path / "two")
  small(tmp_path / "other", num_clips=66, seed=4)
  name = "clips/train-000000.mp4"
  assert contents(tmp_path / "one")[name] != contents(tmp_path / "other")[name]


def test_a_clip_does_not_depend_on_how_many_there_are(tmp_path):
  small(tmp_path / "few", num_clips=4, mismatch=0)
  small(tmp_path / "more", num_clips=9, num_val=2, mismatch=0)
  few, more = contents(tmp_path / "few"), contents(tmp_path / "more")
  shared = [n for n in few if n in more and n.endswith(".mp4")]
  assert len(shared) == 4 + 2 + 5
  assert all(few[name] == more[name] for name in shared)
  texts = {r["id"]: r["text"] for r in rows_of(tmp_path / "more/manifest.csv")}
  for row in rows_of(tmp_path / "few" / "manifest.csv"):
    if row["id"] in texts:
      assert row["text"] == texts[row["id"]]


@pytest.mark.parametrize("mismatch", [0.0, 0.1, 0.35, 0.99])
def test_exactly_the_stated_captions_are_wrong(tmp_path, mismatch):
  rows = rows_of(small(tmp_path, num_clips=30, mismatch=mismatch))
  right = {}  # the caption that each clip should have
  for row in rows:
    index = int(row["id"].split("-")[1])
    scene = synthetic_scene.sample_scene(3, row["split"], index)
    right[row["id"]] = synthetic_caption.caption(scene)
    assert row["group"] == synthetic_scene.combination(scene.things)
    assert row["label"] == scene.label
  wrong = [row for row in rows if row["matched"] == "0"]
  assert len(wrong) == round(mismatch * 30)
  assert {row["split"] for row in wrong} <= {"train"}
  group = {row["id"]: row["group"] for row in rows}
  owner = {text: name for name, text in right.items()}
  assert len(owner) == len(rows)  # no two captions alike: owners are known
  for row in rows:
    if row["matched"] == "1":
      assert row["text"] == right[row["id"]]
    else:
      assert group[owner[row["text"]]] != row["group"]
  assert sorted(row["text"] for row in rows) == sorted(right.values())


@pytest.mark.parametrize("max_objects", [1, 3])
def test_no_combination_is_in_two_splits(max_objects):
  shown = {
    split: {
      synthetic_scene.combination(
        synthetic_scene.sample_scene(
          seed, split, i, max_objects=max_objects
        ).things
      )
      for seed in (0, 1)
      for i in range(250)
    }
    for split in synthetic_scene.SPLITS
  }
  assert not shown["train"] & shown["val"]
  assert not shown["train"] & shown["test"]
  assert not shown["val"] & shown["test"]
  assert min(map(len, shown.values())) > 300  # and they are many


def test_combination_ignores_the_order_of_things_but_not_that_of_motions():
  one, two = a_thing(), a_thing(colour="blue")
  swapped = dataclasses.replace(one, motions=one.motions[::-1])
  combination = synthetic_scene.combination
  assert combination([one, two]) == combination([two, one])
  assert combination([one, two]) != combination([swapped, two])


@pytest.mark.parametrize(
  "motions",
  [("left", "spin"), ("blink", "up"), ("grow", "down"), ("spin", "blink")],
)
def test_the_same_frames_in_another_order_are_another_clip(
  motions, monkeypatch
):
  radii = synthetic_scene.RADIUS
  thing = a_thing(motions=motions)
  if "grow" in motions:  # must end in a size that has a name
    monkeypatch.setitem(radii, "large", radii["medium"] * 1.5)
  forth = synthetic_scene.Scene((thing,), "", 11)
  back = synthetic_scene.Scene((backwards(thing),), "", 11)
  frames = synthetic_video.render(forth, camera_noise=False).astype(int)
  other = synthetic_video.render(back, camera_noise=False).astype(int)
  assert np.abs(frames - other[::-1]).max() <= 1  # rounding
  assert np.abs(frames - other).max() > 50
  assert synthetic_caption.caption(forth) != synthetic_caption.caption(back)


def test_captions_tell_the_order_in_time_whatever_their_form():
  ways = collections.Counter()
  for first, second in [("spin", "blink"), ("blink", "spin"), ("up", "grow")]:
    scene = synthetic_scene.Scene((a_thing(motions=(first, second)),), "", 5)
    for variant in range(60):
      text = synthetic_caption.caption(scene, variant=variant).lower()
      places = sorted(
        (find(text, motion), motion) for motion in (first, second)
      )
      (start, told_first), (end, told_second) = places
      turned = bool(
        re.search(r"\bbefore\b", text[:start])
        or re.search(r"\bafter\b", text[start:end])
      )
      told = (told_second, told_first) if turned else (told_first, told_second)
      assert told == (first, second), text
      ways[turned] += 1
  assert min(ways.values()) > 20  # both forms occur


def find(text, motion):
  stems = {
    "spin": "spin|rotat|turn(s|ing) around",
    "blink": "blink|flash|flicker",
    "up": "(slid|mov|glid|go)[a-z]* (up|to the top)",
    "grow": "grow|get(s|ting) bigger|expand",
  }
  return re.search(rf"\b({stems[motion]})", text).start()


def test_captions_name_every_shape_and_colour_and_vary():
  for scene in scenes("train", 60):
    text = synthetic_caption.caption(scene).lower()
    for thing in scene.things:
      shapes = synthetic_caption.SHAPE_WORDS[thing.shape]
      colours = synthetic_caption.COLOUR_WORDS[thing.colour]
      assert any(c in text for c in colours), text
      assert any(s in text for s in shapes), text
    forms = {synthetic_caption.caption(scene, variant=v) for v in range(20)}
    assert len(forms) >= 19


def test_labels_are_balanced_and_those_of_the_largest_thing():
  drawn = scenes("train", 120)
  counts = collections.Counter(scene.label for scene in drawn)
  assert len(counts) == 12 and set(counts.values()) == {10}
  kinds = {
    motion: kind
    for kind, motions in synthetic_scene.KINDS.items()
    for motion in motions
  }
  for scene in drawn:
    main, *others = scene.things
    assert scene.label == "_then_".join(kinds[m] for m in main.motions)
    for other in others:
      radii = synthetic_scene.RADIUS
      assert radii[other.size] < radii[main.size]
      assert other.colour != main.colour
  assert {len(scene.things) for scene in drawn} == {1, 2, 3}
  assert {len(s.things) for s in scenes("val", 40, max_objects=2)} == {1, 2}


def test_things_stay_in_view_and_a_turn_shows():
  for scene in scenes("test", 80):
    for thing in scene.things:
      centre, radius, _, _ = synthetic_scene.track(thing, 16)
      assert np.min(centre - radius[:, None]) > -1e-9
      assert np.max(centre + radius[:, None]) < 1 + 1e-9
      if thing.shape in ("circle", "ring") and "spin" in thing.motions:
        assert thing.texture != "plain"


@pytest.mark.parametrize("name", ["shape", "colour", "size", "texture"])
def test_each_attribute_changes_the_picture(name):
  options = {
    "shape": synthetic_scene.SHAPES,
    "colour": tuple(synthetic_scene.COLOURS),
    "size": tuple(synthetic_scene.RADIUS),
    "texture": synthetic_scene.TEXTURES,
  }[name]
  pictures = []
  for option in options:
    stays = {"shape": "square", "x": 0.5, "motions": ("stay", "blink")}
    thing = a_thing(**{**stays, name: option})
    scene = synthetic_scene.Scene((thing,), "", 2)
    frames = synthetic_video.render(scene, camera_noise=False).astype(float)
    assert np.array_equal(frames[0], frames[5])  # it stays
    assert not np.array_equal(frames[0], frames[9])  # it is hidden
    pictures.append(frames[0])
  for i, one in enumerate(pictures):
    for other in pictures[:i]:
      assert np.mean(np.abs(one - other).max(-1) > 40) > 0.005


def test_camera_noise_changes_every_frame():
  (scene,) = scenes("train", 1)
  noisy = synthetic_video.render(scene, size=32)
  clean = synthetic_video.render(scene, size=32, camera_noise=False)
  assert noisy.shape == (16, 32, 32, 3) and noisy.dtype == np.uint8
  difference = np.abs(noisy.astype(int) - clean).mean((1, 2, 3))
  assert np.all((difference > 0.5) & (difference < 40))


def test_files_are_real_h264_and_decode_to_what_was_drawn(tmp_path):
  manifest = small(tmp_path, num_clips=2, mismatch=0, size=64, num_val=0)
  row = rows_of(manifest)[0]
  with av.open(str(tmp_path / row["video"])) as container:
    stream = container.streams.video[0]
    assert stream.codec_context.name == "h264"
    assert stream.average_rate == 8 and container.duration == 2_000_000
    keys = [packet.is_keyframe for packet in container.demux() if packet.size]
  assert keys[0] and keys[8] and len(keys) == 16
  frames = decode(tmp_path / row["video"])
  drawn = synthetic_video.render(synthetic_scene.sample_scene(3, "train", 0))
  assert np.shape(frames) == (16, 64, 64, 3)
  assert np.abs(np.array(frames, float) - drawn).mean() < 8


def test_a_second_run_reuses_and_an_interrupted_one_continues(tmp_path, capsys):
  small(tmp_path)
  whole = contents(tmp_path)
  times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
  small(tmp_path)
  assert "30 reused" in capsys.readouterr().out
  assert all(path.stat().st_mtime_ns == t for path, t in times.items())

  (tmp_path / "synthetic.json").rename(tmp_path / "synthetic.part.json")
  (tmp_path / "manifest.csv").unlink()
  lost = tmp_path / "clips" / "train-000007.mp4"
  lost.rename(lost.with_name(lost.name + ".part")).write_bytes(b"half")
  small(tmp_path)
  assert "29 reused" in capsys.readouterr().out
  assert contents(tmp_path) == whole


def test_other_arguments_or_another_folder_are_refused(tmp_path):
  small(tmp_path / "corpus")
  before = contents(tmp_path / "corpus")
  with pytest.raises(errors.UserError, match=r"\(seed; see .*another --out"):
    small(tmp_path / "corpus", seed=4)
  assert contents(tmp_path / "corpus") == before
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.txt").write_text("keep")
  with pytest.raises(errors.UserError, match="not a synthetic corpus"):
    small(tmp_path / "mine")
  with pytest.raises(errors.UserError, match="not a synthetic corpus"):
    small(tmp_path / "mine" / "thesis.txt")
  assert contents(tmp_path / "mine") == {"thesis.txt": b"keep"}


@pytest.mark.parametrize(
  "bad",
  [
    {"mismatch": 1.0},
    {"mismatch": -0.1},
    {"mismatch": float("nan")},
    {"mismatch": 0.05},  # one caption has nobody to change with
    {"num_clips": 0},
    {"size": 33},
    {"size": 8},
    {"seed": -1},
    {"num_val": -1},
    {"max_objects": 4},
    {"num_workers": 0},
  ],
)
def test_bad_arguments_are_refused_and_leave_nothing(tmp_path, bad):
  with pytest.raises(errors.UserError, match="mismatch|" + next(iter(bad))):
    small(tmp_path / "out", **bad)
  assert not (tmp_path / "out").exists()


def test_the_command_writes_a_corpus_and_speaks_plainly(tmp_path):
  command = [sys.executable, "-m", "calince_jax.data.synthetic", "--size=16"]
  good = [f"--out={tmp_path / 'a'}", "--num_clips=10", "--mismatch=0.2"]
  run = {"capture_output": True, "text": True, "env": {**os.environ}}
  done = subprocess.run([*command, *good], **run)
  assert done.returncode == 0, done.stderr
  assert "14/14 clips" in done.stdout and "clips/s" in done.stdout
  assert len(rows_of(tmp_path / "a" / "manifest.csv")) == 14
  done = subprocess.run([*command, *good, "--mismatch=1.5"], **run)
  assert done.returncode == 2
  assert done.stderr == "error: --mismatch=1.5: it must be in [0, 1)\n"


def test_workers_start_without_the_heavy_libraries():
  code = (
    "import sys, calince_jax.data.synthetic.corpus;"
    "print({'jax', 'tensorflow', 'flax'} & set(sys.modules))"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True)
  assert done.stdout.decode().strip() == "set()", done.stderr.decode()


def test_plain_scenes_are_simple_and_told_in_bare_words():
  backgrounds, labels = [], set()
  for index in range(16):
    scene = synthetic_scene.sample_scene(
      0, "train", index, max_objects=2, style="plain"
    )
    assert len(scene.things) == 2
    labels.add(scene.label)
    told = synthetic_caption.caption(scene).split(" and ")
    assert sorted(told) == sorted(
      f"{thing.colour} {thing.shape} {thing.motions[0]}"
      for thing in scene.things
    )
    assert scene.label == scene.things[0].motions[0]
    assert {thing.texture for thing in scene.things} == {"plain"}
    frames = synthetic_video.render(scene, size=32, camera_noise=False)
    corner = frames[0, 0, 0]
    assert (corner == corner[0]).all()  # grey
    backgrounds.append(int(corner[0]))
  assert len(labels) == 8 and len(set(backgrounds)) > 4


def test_a_plain_thing_moves_through_the_whole_clip():
  scenes = (
    synthetic_scene.sample_scene(0, "train", i, max_objects=1, style="plain")
    for i in range(16)
  )
  for scene in scenes:
    thing = scene.things[0]
    centre, radius, _, visible = synthetic_scene.track(thing, 16)
    still = thing.motions[0] in ("stay", "blink")
    moved = np.abs(np.diff(centre, axis=0)).sum(axis=1) > 1e-6
    grown = np.abs(np.diff(radius)) > 1e-6
    assert (moved | grown).all() != still
    assert (visible == 1).all() == (thing.motions[0] != "blink")
