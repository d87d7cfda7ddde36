"""Published protocols: what they choose, and the counts that they assert."""

import json

import numpy as np
import pytest

from calince_jax.data.sources.annotations import FORMATS
from calince_jax.errors import UserError
from calince_jax.evals import (
  bootstrap,
  protocols,
  retrieval,
  tasks,
  zero_shot,
)


def test_what_is_missing_is_said_and_a_larger_set_is_another_one():
  whole = protocols.describe("msrvtt_full", 2990, 59_800)
  assert whole["clips found"] == "2,990 of 2,990" and "note" not in whole
  some = protocols.describe("msrvtt_full", 2841, 56_820)
  assert some["clips found"] == "2,841 of 2,990"
  assert some["note"].startswith("149 clips are missing")
  with pytest.raises(UserError, match=r"1,004 \(Hendricks.*didemo_paragraph"):
    protocols.describe("didemo", 4021, 4021)
  with pytest.raises(UserError, match="has 1,001 captions"):
    protocols.describe("msrvtt_1ka", 1000, 1001)
  with pytest.raises(UserError, match="has 999 captions"):
    protocols.describe("msrvtt_1ka", 1000, 999)
  with pytest.raises(UserError, match="--protocol='msrvtt'"):
    protocols.named("msrvtt")


def test_a_protocol_chooses_split_task_and_views():
  chosen = tasks.by_protocol(tasks.Options("run", protocol="kinetics400"))
  assert (chosen.task, chosen.split) == ("recognition", "val")
  assert (chosen.num_clips, chosen.num_crops) == (10, 3)
  options = tasks.Options("run", protocol="ucf101_1", task="video_retrieval")
  assert tasks.by_protocol(options).task == "video_retrieval"
  options = tasks.Options("run", protocol="activitynet", split="train")
  with pytest.raises(UserError, match="has split=val, not train"):
    tasks.by_protocol(options)


@pytest.mark.parametrize(
  ("form", "content"),
  [
    (
      "didemo_paragraph",
      [
        {"video": "a", "description": "then b", "times": [[2, 2]]},
        {"video": "a", "description": "first a", "times": [[0, 1]]},
      ],
    ),
    (
      "activitynet_paragraph",
      {
        "a": {
          "timestamps": [[9, 12], [0, 5]],
          "sentences": ["then b", "first a"],
        }
      },
    ),
  ],
)
def test_a_paragraph_joins_the_captions_of_a_video(form, content, tmp_path):
  path = tmp_path / "test.json"
  path.write_text(json.dumps(content))
  (row,) = FORMATS[form]([path])
  assert row == {"video": "a", "text": "first a then b", "split": "test"}


def test_the_bootstrap_draws_clips_with_all_their_queries():
  rng = np.random.default_rng(0)
  # Ten queries of a clip that are all alike say no more than one of them.
  one = rng.random(40) < 0.5
  single = bootstrap.intervals({"x": one * 1.0}, np.arange(40), seed=0)["x"]
  many = bootstrap.intervals(
    {"x": np.repeat(one, 10) * 1.0}, np.repeat(np.arange(40), 10), seed=0
  )["x"]
  np.testing.assert_allclose(many, single)
  spread = 2 * 1.96 * np.sqrt(one.mean() * (1 - one.mean()) / 40)
  np.testing.assert_allclose(single[1] - single[0], spread, rtol=0.15)
  # The median: that of a table of draws.
  values = rng.normal(size=40)
  low, high = bootstrap.intervals(
    {"x": values}, np.arange(40), seed=0, medians=("x",)
  )["x"]
  draws = np.median(rng.choice(values, (4000, 40)), axis=1)
  np.testing.assert_allclose(
    [low, high], np.percentile(draws, [2.5, 97.5]), atol=0.15
  )


def test_intervals_hold_the_metrics_of_captions_and_clips():
  rng = np.random.default_rng(1)
  video = rng.normal(size=(30, 8)).astype(np.float32)
  owner = np.repeat(np.arange(30), 3)
  text = (video[owner] + rng.normal(size=(90, 8))).astype(np.float32)
  metrics = retrieval.text_video_metrics(text, video, owner)
  ranked = retrieval.rank_both_ways(text, video, owner)
  found = retrieval.intervals_of(ranked, seed=0)
  assert found.keys() == metrics.keys()
  for name, (low, high) in found.items():
    assert low <= metrics[name] <= high and low < high, name


def test_a_class_is_the_mean_of_its_prompts():
  asked = []

  def encode(texts):
    asked.extend(texts)
    return np.array([[len(text), 1.0] for text in texts], np.float32)

  found = zero_shot.class_embeddings(
    ["ApplyEyeMakeup", "brush_hair"], encode, ("{}", "a video of {}")
  )
  assert asked == [
    "apply eye makeup", "brush hair",
    "a video of apply eye makeup", "a video of brush hair",
  ]  # fmt: skip
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
  np.testing.assert_allclose(found[0, 0] / found[0, 1], (16 + 27) / 2)
