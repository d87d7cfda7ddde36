"""Collectives and traffic are counted as the program runs them."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from calince_jax.runtime import hlo, sharding


def program(function, specs, *shapes):
  mesh = sharding.make_mesh(jax.devices())
  places = [NamedSharding(mesh, spec) for spec in specs]
  arguments = [
    jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
    for shape, place in zip(shapes, places, strict=True)
  ]
  whole = sharding.replicated(mesh)
  compiled = jax.jit(function, out_shardings=whole).lower(*arguments).compile()
  return hlo.read_program(compiled.as_text())


def test_an_all_reduce_sends_twice_its_result():
  """x [8, 64] over 8 devices: the partial sums [64] go round the ring twice."""
  made = program(lambda x: x.sum(axis=0), [P("data")], (8, 64))
  (one,) = made.collectives
  assert (one.kind, one.group, one.times) == ("all-reduce", 8, 1)
  assert one.result_bytes == 64 * 4
  assert made.sent_bytes() == {"all-reduce": round(2 * 64 * 4 * 7 / 8)}


def test_an_all_gather_sends_all_but_its_own_part():
  made = program(lambda x: x + 1, [P("data")], (16, 32))
  (one,) = made.collectives
  assert one.kind == "all-gather"
  assert made.sent_bytes() == {"all-gather": 16 * 32 * 4 * 7 // 8}


def test_the_body_of_a_scan_counts_as_often_as_it_runs():
  def function(x, w):
    def body(x, w):
      return x * w.sum(), None  # w is sharded: a sum over the devices

    return jax.lax.scan(body, x, w)[0]

  made = program(function, [P(), P(None, "data")], (4,), (5, 64))
  sums = [one for one in made.collectives if one.kind == "all-reduce"]
  assert sum(one.times for one in sums) in (1, 5)  # inside, or hoisted whole
  assert sum(one.result_bytes for one in sums) == 5 * 4


def test_memory_traffic_counts_operands_and_results():
  made = program(lambda x, y: x @ y, [P(), P()], (256, 128), (128, 64))
  assert not made.collectives
  smallest = 4 * (256 * 128 + 128 * 64 + 256 * 64)
  assert smallest <= made.memory_traffic < 3 * smallest


TPU = """
ENTRY %main (x: bf16[8,16]) -> bf16[64,16] {
  %x = bf16[8,16]{1,0} parameter(0)
  %start = (bf16[64,16]{1,0}) fusion(%x), kind=kCustom, calls=%begin
  %more = bf16[8,16]{1,0} fusion(%x), kind=kOutput, calls=%beside
  %scattered = f32[4,16]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %done = bf16[64,16]{1,0} get-tuple-element(%start), index=0
}
%begin (p: bf16[8,16]) -> (bf16[64,16]) {
  %p = bf16[8,16]{1,0} parameter(0)
  ROOT %g = bf16[64,16]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
}
%beside (p: bf16[8,16]) -> bf16[8,16] {
  %p = bf16[8,16]{1,0} parameter(0)
  %g = bf16[64,16]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %c = bf16[8,16]{1,0} negate(%p)
}
%all-reduce-scatter.1 (p: f32[32,16]) -> f32[4,16] {
  %p = f32[32,16]{1,0} parameter(0)
  %r = f32[32,16]{1,0} all-reduce(%p), channel_id=8, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %s = f32[4,16]{1,0} dynamic-slice(%r), dynamic_slice_sizes={4,16}
}
"""  # noqa: E501


def test_collectives_in_fusions_count_once():
  made = hlo.read_program(TPU)
  assert [(c.kind, c.group) for c in made.collectives] == [
    ("all-gather", 8),
    ("reduce-scatter", 8),
  ]
  assert made.sent_bytes() == {
    "all-gather": 64 * 16 * 2 * 7 // 8,
    "reduce-scatter": 4 * 16 * 4 * 7,
  }


PARTS = """
ENTRY %main (x: f32[4,8], y: f32[8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %i = s32[] constant(1)
  %row = f32[8]{0} fusion(%x, %i), kind=kLoop, calls=%read_row
  %start = (f32[8]{0:S(1)}, f32[8]{0}, u32[]) copy-start(%row)
  %near = f32[8]{0:S(1)} copy-done(%start)
  ROOT %z = f32[4,8]{1,0} fusion(%x, %near, %i), kind=kLoop, calls=%write_row
}
%read_row (p: f32[4,8], q: s32[]) -> f32[8] {
  %p = f32[4,8]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %b = f32[4,8]{1,0} bitcast(%p)
  %s = f32[1,8]{1,0} dynamic-slice(%b, %q, %q), dynamic_slice_sizes={1,8}
  ROOT %r = f32[8]{0} reshape(%s)
}
%write_row (p: f32[4,8], v: f32[8], q: s32[]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %v = f32[8]{0} parameter(1)
  %q = s32[] parameter(2)
  %w = f32[1,8]{1,0} bitcast(%v)
  ROOT %u = f32[4,8]{1,0} dynamic-update-slice(%p, %w, %q, %q)
}
"""


def test_of_an_array_the_part_counts_that_is_taken_or_replaced():
  """A row of 32 bytes is read and written, copied near, and put in place."""
  made = hlo.read_program(PARTS)
  index = 4
  assert made.memory_traffic == (32 + 32 + index) + 32 + (32 + index)


def test_groups_of_a_mesh_are_counted_whatever_the_order_of_devices():
  line = (
    "  %g = bf16[64,16]{1,0} all-gather(%p), channel_id=7, replica_groups="
    "mesh['axis_0'=1,'axis_1'=16,'axis_2'=4], device_ids=([16,4]T(1,0))"
    " {'axis_1'}, dimensions={0}"
  )
  body = f"ENTRY %main (p: bf16[4,16]) -> bf16[64,16] {{\n{line}\n}}\n"
  (one,) = hlo.read_program(body).collectives
  assert one.group == 16


LOOP = """
ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[4]{0}) tuple(%zero, %x)
  %loop = (s32[], f32[4]{0}) while(%begin), condition=%more, body=%turn
  ROOT %y = f32[4]{0} get-tuple-element(%loop), index=1
}
%more (p: (s32[], f32[4])) -> pred[] {
  %count = s32[]{:T(128)} constant(12)
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %count), direction=LT
}
%turn (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %y = f32[4]{0} get-tuple-element(%p), index=1
  %sum = f32[4]{0:S(1)} all-reduce(%y), replica_groups=[1,2]<=[2], to_apply=%add
  %z = f32[4]{0} negate(%sum)
  ROOT %t = (s32[], f32[4]{0}) tuple(%i, %z)
}
"""


def test_a_loop_counts_by_its_condition_and_vector_memory_is_no_traffic():
  """As TPU programs are written: the all-reduce's result stays on the chip."""
  made = hlo.read_program(LOOP)
  assert [c.times for c in made.collectives] == [12]
  # Reads y and writes z; and once the condition, of 4 + 4 + 1 bytes.
  assert made.memory_traffic == 12 * (16 + 16) + 9
