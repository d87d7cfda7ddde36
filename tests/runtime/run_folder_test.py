"""A run's folder says what it was begun with, and refuses anything else."""

import dataclasses
import json
import types
from pathlib import Path

import pytest
from conftest import tiny_config, train_tiny

from calince_jax import config as config_lib
from calince_jax.data.records import schema
from calince_jax.errors import UserError
from calince_jax.runtime import run_folder

CONFIG = {"seed": 0, "log_every": 5, "model": {"size": "S", "tubelet": (2, 4)}}


def begin(workdir, config, infos=(), confidences=None):
  """A run of data sets of these infos, and an empty tokenizer."""
  tokenizer = Path(workdir) / "made"
  tokenizer.write_bytes(b"")
  folders = [f"data{i}" for i in range(len(infos))]
  earlier = None
  if run_folder.exists(workdir):
    _, earlier = run_folder.read_document(workdir)
  run_folder.begin(
    workdir,
    config,
    tokenizer,
    folders,
    infos,
    confidences=confidences,
    earlier=earlier,
    may_change=config_lib.keys_that_may_change(),
  )


def test_the_configuration_comes_back(tmp_path):
  begin(str(tmp_path), CONFIG)
  begin(str(tmp_path), CONFIG)
  read = run_folder.read_document(str(tmp_path))[1]
  assert read["model"] == {"size": "S", "tubelet": [2, 4]}
  document = json.loads((tmp_path / "config.json").read_text())
  assert document["format_version"] == run_folder.FORMAT_VERSION


@pytest.mark.parametrize(
  "changed, said",
  [
    (CONFIG | {"seed": 1}, "seed: 0 became 1"),
    (CONFIG | {"model": {"size": "S"}}, "model.tubelet is gone"),
    (CONFIG | {"more": 1}, "more is new"),
  ],
)
def test_differences_are_named_and_nothing_is_written(tmp_path, changed, said):
  begin(str(tmp_path), CONFIG)
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(UserError, match=said):
    begin(str(tmp_path), changed)
  assert (tmp_path / "config.json").read_bytes() == before


def test_a_run_goes_on_with_its_own_confidences_alone(tmp_path):
  info = types.SimpleNamespace(name="data", num_pairs=4)
  begin(str(tmp_path), CONFIG, [info], confidences="aa")
  begin(str(tmp_path), CONFIG, [info], confidences="aa")
  with pytest.raises(UserError, match="confidences: 'aa' became 'bb'"):
    begin(str(tmp_path), CONFIG, [info], confidences="bb")


def test_what_does_not_decide_the_run_may_change(tmp_path):
  begin(str(tmp_path), CONFIG)
  begin(str(tmp_path), CONFIG | {"log_every": 7})
  assert run_folder.read_document(str(tmp_path))[1]["log_every"] == 7


@pytest.mark.parametrize(
  "content, said",
  [
    ('{"format_version": 1, "con', "damaged"),
    ('{"config": {}}', "damaged.*format_version"),
    ("[1]", "damaged"),
    ('{"format_version": 99, "config": {}}', "99, newer"),
  ],
)
def test_a_damaged_or_newer_config_is_said(tmp_path, content, said):
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(UserError, match=f"config.json.*{said}"):
    run_folder.read_document(str(tmp_path))[1]


def test_not_a_run(tmp_path):
  with pytest.raises(UserError, match="not the folder of a run"):
    run_folder.read_document(str(tmp_path))[1]


def test_a_change_of_the_machine_is_no_other_run(tmp_path):
  config = tiny_config(tmp_path).to_dict()
  begin(str(tmp_path), config)
  config["sharding"] = {"model_parallel": 2, "rules": [["bias", "replicate"]]}
  config["grad_cache_chunks"] = 4
  config["data"]["datasets"] = "elsewhere"
  begin(str(tmp_path), config)
  _, read = run_folder.read_document(str(tmp_path))
  assert read == json.loads(json.dumps(config))


def info(**changes):
  made = schema.DatasetInfo(
    format_version=1,
    name="a",
    frame_rate=8.0,
    short_side=32,
    splits={"train": {"clips": 4, "pairs": 5}},
    num_pairs=5,
    labels=[],
    manifest_sha256="00",
    settings={},
  )
  return dataclasses.replace(made, **changes)


def test_data_may_move_but_not_change(tmp_path):
  run = str(tmp_path)
  begin(run, CONFIG, [info()])
  begin(run, CONFIG, [info(name="b")])
  before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
  # Nothing is written where anything is refused.
  other = CONFIG | {"log_every": 9}
  with pytest.raises(UserError, match="data0 does not hold.*manifest_sha256"):
    begin(run, other, [info(manifest_sha256="01")])
  with pytest.raises(UserError, match="1 data sets, not 2"):
    begin(run, other, [info(), info()])
  assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_a_run_refuses_other_data(trained_run, tiny_dataset, tmp_path):
  other = tmp_path / "other"
  other.mkdir()
  for path in tiny_dataset.iterdir():
    (other / path.name).write_bytes(path.read_bytes())
  content = json.loads((other / "dataset.json").read_text())
  (other / "dataset.json").write_text(json.dumps(content | {"num_pairs": 105}))
  with pytest.raises(UserError, match="num_pairs: 104 became 105"):
    train_tiny(trained_run, tiny_config(other))
