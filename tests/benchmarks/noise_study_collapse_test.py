"""The drawn corpora of noise_study.collapse, and what it counts."""

from benchmarks.noise_study import collapse

DATA = {"image_size": 8, "num_frames": 2, "text_length": 6}


def test_a_draw_says_how_many_captions_are_wrong():
  drawn = collapse.draw(1, 8) | {"clips": 20, "noise_rate": 0.3}
  corpus = collapse.make_corpus(drawn, DATA)
  assert corpus["video"].shape == (20, 2, 8, 8, 3)
  assert (corpus["matched"] == 0).sum() == 6
  clean = collapse.make_corpus(drawn | {"noise_rate": 0.0}, DATA)
  assert clean["matched"].all()
  differ = (corpus["text_ids"] != clean["text_ids"]).any(axis=1)
  assert not differ[corpus["matched"] == 1].any() and differ.any()


def test_words_become_numbers_between_begin_and_end():
  a, b = collapse.word_ids(["red cross", "a red red cross grows on"], 6)
  red, cross = a[1], a[2]
  assert a.tolist() == [2, red, cross, 3, 0, 0] and red != cross > 4
  assert b.tolist() == [2, b[1], red, red, cross, 3]  # what is longer is cut


def test_runs_at_chance_are_counted_by_method():
  def run(accuracy):
    return {"accuracy": accuracy, "took_off": None, "least_share": 0.5}

  rows = [
    {"chance": 0.1, "cotrain": run(0.6), "cali_nce": run(0.4)},
    {"chance": 0.1, "cotrain": run(0.6), "cali_nce": run(0.9)},
    {"chance": 0.1, "cotrain": run(0.2), "cali_nce": run(0.2)},
  ]
  text = collapse.describe(rows, 10)
  assert "Stuck where co-training is not: **1**; the other way round: 0" in text
  assert "| `cotrain` | 1 of 3 |" in text and "| `cali_nce` | 2 of 3 |" in text
