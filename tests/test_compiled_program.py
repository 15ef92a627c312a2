"""What a compiled program does is read off its text: loops multiplied out, products written as convolutions, arrays
touched in part, fast memory, collectives. The values are worked out by hand."""

# ruff: noqa: E501 (the lines of a program are as long as they are)

import pytest

from models.hlo import Module, UnknownTrips

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%fused_product (param_0.1: bf16[8,16], param_1.1: bf16[16,32]) -> f32[8,32] {
  %param_0.1 = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.1 = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = f32[8,32]{1,0:T(8,128)} convolution(%param_0.1, %param_1.1), dim_labels=bf_io->bf
}

%fused_batches (param_0.2: bf16[4,8,16], param_1.2: bf16[4,16,2]) -> f32[4,8,2] {
  %param_0.2 = bf16[4,8,16]{2,1,0} parameter(0)
  %param_1.2 = bf16[4,16,2]{2,1,0} parameter(1)
  ROOT %convolution.2 = f32[4,8,2]{2,1,0} convolution(%param_0.2, %param_1.2), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf
}

%fused_update (param_0.3: f32[64,8], param_1.3: f32[64,8], param_2.3: s32[]) -> f32[64,8] {
  %param_0.3 = f32[64,8]{1,0} parameter(0)
  %param_1.3 = f32[64,8]{1,0} parameter(1)
  %param_2.3 = s32[] parameter(2)
  %constant.3 = s32[] constant(0)
  %dynamic-slice.3 = f32[2,8]{1,0} dynamic-slice(%param_1.3, %param_2.3, %constant.3), dynamic_slice_sizes={2,8}
  ROOT %dynamic-update-slice.3 = f32[64,8]{1,0} dynamic-update-slice(%param_0.3, %dynamic-slice.3, %param_2.3, %constant.3)
}

%fused_scatter (param_0.4: f32[64,8], param_1.4: s32[3], param_2.4: f32[3,8]) -> f32[64,8] {
  %param_0.4 = f32[64,8]{1,0} parameter(0)
  %param_1.4 = s32[3]{0} parameter(1)
  %param_2.4 = f32[3,8]{1,0} parameter(2)
  ROOT %scatter.4 = f32[64,8]{1,0} scatter(%param_0.4, %param_1.4, %param_2.4), update_window_dims={1}, to_apply=%add
}

%body (arg: (s32[], bf16[8,16], bf16[16,32], f32[8,32])) -> (s32[], bf16[8,16], bf16[16,32], f32[8,32]) {
  %arg = (s32[], bf16[8,16]{1,0:S(1)}, bf16[16,32]{1,0}, f32[8,32]{1,0}) parameter(0)
  %counter = s32[] get-tuple-element(%arg), index=0
  %states = bf16[8,16]{1,0:S(1)} get-tuple-element(%arg), index=1
  %matrix = bf16[16,32]{1,0} get-tuple-element(%arg), index=2
  %two = s32[] constant(2)
  %next = s32[] add(%counter, %two)
  %product = f32[8,32]{1,0} fusion(%states, %matrix), kind=kOutput, calls=%fused_product
  ROOT %result = (s32[], bf16[8,16]{1,0:S(1)}, bf16[16,32]{1,0}, f32[8,32]{1,0}) tuple(%next, %states, %matrix, %product)
}

%condition (arg.1: (s32[], bf16[8,16], bf16[16,32], f32[8,32])) -> pred[] {
  %arg.1 = (s32[], bf16[8,16]{1,0:S(1)}, bf16[16,32]{1,0}, f32[8,32]{1,0}) parameter(0)
  %counter.1 = s32[] get-tuple-element(%arg.1), index=0
  %end = s32[] LIMIT
  ROOT %less = pred[] compare(%counter.1, %end), direction=LT
}

ENTRY %main (states: bf16[8,16], matrix: bf16[16,32], left: bf16[4,8,16], right: bf16[4,16,2], pool: f32[64,8], new: f32[64,8], at: s32[]) -> f32[8,32] {
  %states.1 = bf16[8,16]{1,0:S(1)} parameter(0)
  %matrix.1 = bf16[16,32]{1,0} parameter(1)
  %left = bf16[4,8,16]{2,1,0} parameter(2)
  %right = bf16[4,16,2]{2,1,0} parameter(3)
  %pool = f32[64,8]{1,0} parameter(4)
  %new = f32[64,8]{1,0} parameter(5)
  %at = s32[] parameter(6)
  %zero = s32[] constant(0)
  %room = f32[8,32]{1,0} broadcast(%zero), dimensions={}
  %start = (s32[], bf16[8,16]{1,0:S(1)}, bf16[16,32]{1,0}, f32[8,32]{1,0}) tuple(%zero, %states.1, %matrix.1, %room)
  %loop = (s32[], bf16[8,16]{1,0:S(1)}, bf16[16,32]{1,0}, f32[8,32]{1,0}) while(%start), condition=%condition, body=%body, metadata={op_name="jit(step)/while"}
  %batches = f32[4,8,2]{2,1,0} fusion(%left, %right), kind=kOutput, calls=%fused_batches
  %updated = f32[64,8]{1,0} fusion(%pool, %new, %at), kind=kLoop, calls=%fused_update
  %places = s32[3]{0} constant({1, 2, 3})
  %rows = f32[3,8]{1,0} slice(%new), slice={[0:3], [0:8]}
  %scattered = f32[64,8]{1,0} fusion(%updated, %places, %rows), kind=kCustom, calls=%fused_scatter, metadata={op_name="jit(step)/while/body/scatter"}
  %fetching = (bf16[16,32]{1,0:S(1)}, bf16[16,32]{1,0}, u32[]{:S(2)}) copy-start(%matrix.1)
  %fetched = bf16[16,32]{1,0:S(1)} copy-done(%fetching)
  %keeping = (f32[64,8]{1,0}, f32[64,8]{1,0}, u32[]{:S(2)}) copy-start(%new)
  %kept = f32[64,8]{1,0} copy-done(%keeping)
  %cutting = ((f32[64,8]{1,0}), f32[4,8]{1,0:S(1)}, u32[]{:S(2)}) slice-start(%new), slice={[0:4], [0:8]}
  %cut = f32[4,8]{1,0:S(1)} slice-done(%cutting)
  %gathered = f32[128,8]{1,0} all-gather(%updated), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %summed = f32[8,32]{1,0} all-reduce(%room), channel_id=2, replica_groups={{0,1},{2,3}}, to_apply=%add
  %kernel = bf16[8,16]{1,0} custom-call(%states.1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"700","transcendentals":"0","bytes_accessed":"50"}}}
  ROOT %out = f32[8,32]{1,0} get-tuple-element(%loop), index=3
}
"""
COUNTED = PROGRAM.replace("LIMIT", "constant(10)")  # 0 2 4 6 8: five trips
PRODUCT = 2 * 8 * 32 * 16
BATCHES = 4 * 2 * 8 * 2 * 16


def test_loops_are_multiplied_out():
    assert Module(COUNTED).flops == 5 * PRODUCT + BATCHES + 700


@pytest.mark.parametrize(
    "lines",
    [
        "  %table = s32[2,2]{1,0} constant({\n  { 0, 1 },\n  { 2, 3 }\n}), metadata={}\n",
        '  %said = s32[2]{0} custom-call(%at), custom_call_target="x", frontend_attributes={kernel_metadata={\n}}, metadata={}\n',
    ],
)
def test_an_instruction_of_several_lines_ends_no_computation(lines: str):
    before, loop, after = COUNTED.partition("  %loop = ")
    assert Module(before + lines + loop + after).flops == 5 * PRODUCT + BATCHES + 700


def test_a_loop_of_dynamic_length_runs_as_often_as_said():
    dynamic = PROGRAM.replace("LIMIT", "add(%counter.1, %counter.1)")
    assert Module(dynamic, trips=(7,)).flops == 7 * PRODUCT + BATCHES + 700
    with pytest.raises(UnknownTrips, match=r"jit\(step\)/while"):
        assert Module(dynamic).flops


def test_bytes_are_those_of_main_memory_that_are_touched():
    by_name = {work.instruction.name: work.bytes for work in Module(COUNTED).work}
    assert by_name["product"] == 2 * 16 * 32 + 4 * 8 * 32  # the states lie in fast memory
    assert by_name["updated"] == 4 * (2 * 8 + 2 * 8) + 4  # a slice read, as much written, and where
    assert by_name["kernel"] == 50
    assert by_name["scattered"] == 4 * (3 + 3 * 8 + 3 * 8)  # places and rows read, rows written: the pool stays
    assert by_name["fetching"] == 2 * 16 * 32  # read, into fast memory
    assert by_name["keeping"] == 2 * 4 * 64 * 8  # read and written
    assert by_name["cutting"] == 4 * 4 * 8


def test_collectives_count_what_reaches_a_device():
    found = {each.kind: (each.times, each.bytes) for each in Module(COUNTED).collectives}
    assert found == {"all-gather": (1, 4 * 128 * 8 * 3 / 4), "all-reduce": (1, 2 * 4 * 8 * 32 / 2)}


def test_what_costs_most_comes_first():
    found = Module(COUNTED).costliest(lambda work: work.times * work.bytes)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found["scatter"] == 4 * (3 + 3 * 8 + 3 * 8)
    assert found["copy-start"] == 2 * 16 * 32 + 2 * 4 * 64 * 8  # what has no name of its own, by its kind
    assert sum(found.values()) == Module(COUNTED).bytes
