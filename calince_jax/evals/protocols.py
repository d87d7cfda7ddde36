"""Published evaluation protocols by name, with the counts of their test sets.

Numbers of different test sets cannot be compared, and a test set shrinks as
videos go offline: what is missing of it is said beside every result.
"""

import dataclasses

from calince_jax.errors import UserError, check_choice

RETRIEVAL = "retrieval"
RECOGNITION = "recognition"


@dataclasses.dataclass(frozen=True)
class Protocol:
  """A test set, and how it is evaluated.

  Attributes:
    split: of the prepared data set.
    clips: that the split has where nothing is missing.
    queries: its captions; None: any number.
    task: of evaluate.
    captions: what a text query is.
    source: of the counts.
    num_clips, num_crops: test views.
  """

  split: str
  clips: int
  queries: int | None
  task: str
  captions: str
  source: str
  num_clips: int = 1
  num_crops: int = 1


EACH = "every caption is a query; a video's rank is that of its best caption"
PARAGRAPH = "all captions of a video, joined in the order of their start"
LABELS = "the class names the clip"


def _ucf101(clips: int) -> Protocol:
  source = "testlist of Soomro et al. (2012)"
  return Protocol("test", clips, None, RECOGNITION, LABELS, source, 10, 3)


_HMDB51 = Protocol(
  *("test", 1530, None, RECOGNITION, LABELS),
  "70 training and 30 test clips of each of 51 classes, Kuehne et al. (2011)",
  *(10, 3),
)
PROTOCOLS = {
  "msrvtt_1ka": Protocol(
    *("test", 1000, 1000, RETRIEVAL, "one caption a video"),
    "Yu et al. (2018), MSRVTT_JSFUSION_test.csv",
  ),
  "msrvtt_full": Protocol(
    *("test", 2990, 59_800, RETRIEVAL, EACH),
    "Xu et al. (2016), 20 captions a video",
  ),
  "msvd": Protocol(
    *("test", 670, 27_763, RETRIEVAL, EACH),
    "Chen and Dolan (2011), English captions as CLIP4Clip has them",
  ),
  "didemo": Protocol(
    *("test", 1004, 1004, RETRIEVAL, PARAGRAPH), "Hendricks et al. (2017)"
  ),
  "activitynet": Protocol(
    *("val", 4917, 4917, RETRIEVAL, PARAGRAPH),
    "val1 of Krishna et al. (2017), as Zhang et al. (2018) evaluate it",
  ),
  "youcook2": Protocol(
    *("val", 3492, 3492, RETRIEVAL, "one caption a segment"),
    "Zhou et al. (2018); many report the 3,350 segments that Miech et al."
    " (2019) still found",
  ),
  "vatex": Protocol(
    *("test", 1500, 15_000, RETRIEVAL, EACH),
    "half of the validation set, Chen et al. (2020), 10 captions a video",
  ),
  "ucf101_1": _ucf101(3783),
  "ucf101_2": _ucf101(3734),
  "ucf101_3": _ucf101(3696),
  "hmdb51_1": _HMDB51,
  "hmdb51_2": _HMDB51,
  "hmdb51_3": _HMDB51,
  "kinetics400": Protocol(
    *("val", 19_906, None, RECOGNITION, LABELS),
    "validation list of Kay et al. (2017)",
    *(10, 3),
  ),
}


def named(name: str) -> Protocol:
  """The protocol of this name; UserError lists the known ones."""
  check_choice("--protocol", name, list(PROTOCOLS))
  return PROTOCOLS[name]


def describe(name: str, clips: int, queries: int) -> dict[str, str]:
  """Lines of a result's protocol: which it is, and what is missing of it.

  Args:
    name: of the protocol.
    clips: of the split that is evaluated.
    queries: its captions.

  Raises:
    UserError: there is more than the protocol has, so it is another test set;
      or all clips, and other captions.
  """
  protocol = named(name)
  if clips > protocol.clips:
    raise UserError(
      f"split {protocol.split!r} has {clips:,} clips, and the test set of"
      f" {name} {protocol.clips:,} ({protocol.source}): it is another one"
      + _how_to_join(protocol)
    )
  wanted = protocol.queries
  if wanted is not None:
    all_there = clips == protocol.clips
    if queries > wanted or (all_there and queries != wanted):
      raise UserError(
        f"split {protocol.split!r} has {queries:,} captions, and the test set"
        f" of {name} {wanted:,} ({protocol.source}): it is another one"
        + _how_to_join(protocol)
      )
  lines = {
    "name": name,
    "test set": protocol.source,
    "captions": protocol.captions,
    "clips found": f"{clips:,} of {protocol.clips:,}",
  }
  if clips < protocol.clips:
    missing = protocol.clips - clips
    lines["note"] = (
      f"{missing:,} clips are missing: the numbers cannot be compared with"
      " those of the whole test set"
    )
  return lines


def _how_to_join(protocol: Protocol) -> str:
  if protocol.captions != PARAGRAPH:
    return ""
  return (
    "; prepare with --format=didemo_paragraph or activitynet_paragraph to join"
    " the captions of a video"
  )
