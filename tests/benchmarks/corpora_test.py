"""Corpora of simulators, which are not installed here: what they share."""

import csv
import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from benchmarks.corpora import clips
from benchmarks.corpora.metaworld_sentences import PHRASES
from calince_jax.data.sources.manifest import read_manifest
from calince_jax.errors import UserError


def make(unit: str, out: Path):
  """Two clips of one colour."""
  with (out / "asked.txt").open("a") as file:
    file.write(f"{unit}\n")
  rows = []
  for split in ("train", "test"):
    frames = np.full((clips.NUM_FRAMES, 16, 16, 3), 90, np.uint8)
    video = clips.write_clip(out, f"{unit}-{split}", frames)
    row = {"video": video, "text": f"a {unit}", "id": f"{unit}-{split}"}
    row |= {"label": unit, "split": split, "group": "", "matched": 1}
    rows.append(row)
  return rows


def test_units_are_made_once_and_end_in_a_manifest(tmp_path):
  out, units = tmp_path / "corpus", ["cat", "dog", "cow"]
  manifest = clips.make_corpus(str(out), {"a": 1}, units, make, 1)
  (out / "units" / "dog.json").unlink()  # as if it had been stopped in it
  first = manifest.read_bytes()
  assert clips.make_corpus(str(out), {"a": 1}, units, make, 1) == manifest
  assert manifest.read_bytes() == first
  assert (out / "asked.txt").read_text().split() == [*units, "dog"]
  found, problems = read_manifest(manifest)
  assert not problems and len(found) == 6
  assert [clip.captions[0].matched for clip in found] == [1] * 6
  with manifest.open(newline="") as file:
    assert [row["label"] for row in csv.DictReader(file)][::2] == units
  with pytest.raises(UserError, match="other settings"):
    clips.make_corpus(str(out), {"a": 2}, units, make, 1)


def test_a_clip_shows_its_first_and_last_moment():
  assert clips.moments(8).tolist() == list(range(8))
  long = clips.moments(71)
  assert (long[0], long[-1], len(long)) == (0, 70, 8)


@pytest.fixture
def simulators(monkeypatch):
  """Empty modules in the place of the simulators."""
  for name, names in {
    "gymnasium": (),
    "minigrid": (),
    "minigrid.utils": (),
    "minigrid.utils.baby_ai_bot": ("BabyAIBot",),
    "mujoco": ("MjvCamera",),
    "metaworld": (),
    "metaworld.env_dict": ("ALL_V3_ENVIRONMENTS",),
    "metaworld.policies": ("ENV_POLICY_MAP",),
  }.items():
    module = types.ModuleType(name)
    for one in names:
      setattr(module, one, None)
    monkeypatch.setitem(sys.modules, name, module)
  for name in ("grid", "metaworld"):
    module = f"benchmarks.corpora.{name}"
    monkeypatch.delitem(sys.modules, module, raising=False)
  return importlib.import_module


def test_a_mission_is_of_one_split(simulators):
  grid = simulators("benchmarks.corpora.grid")
  missions = [f"go to the {i} key and open a door" for i in range(2000)]
  splits = [grid.split_of(mission) for mission in missions]
  assert splits == [grid.split_of(mission) for mission in missions]
  shares = [splits.count(name) / 2000 for name in ("train", "val", "test")]
  assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


def test_a_sentence_says_the_task_and_where_the_thing_is(simulators):
  metaworld = simulators("benchmarks.corpora.metaworld")
  assert len(PHRASES) == 50
  rng = np.random.default_rng(0)
  said = [metaworld.sentence(rng, "door-open", (-0.2, 0.5)) for _ in range(200)]
  assert all(any(p in text for p in PHRASES["door-open"]) for text in said)
  assert len(set(said)) > 20
  assert any("left" in text for text in said)
  assert any("near" in text for text in said)
  assert not any("right" in text or "far" in text for text in said)
