"""What is read from the text of a compiled program."""

import pytest

from experiments.timing.compiled_program import KINDS, parse

TEXT = """\
HloModule jit_train_step, is_scheduled=true

%fused_computation (param_0: f32[8,16]) -> f32[16,8] {
  %param_0 = f32[8,16]{1,0} parameter(0)
  %maximum.1 = f32[8,16]{1,0} maximum(%param_0, %param_0)
  ROOT %transpose.1 = f32[16,8]{1,0} transpose(%maximum.1), dimensions={1,0}
}

%region_0.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.0 = f32[] add(%a, %b)
}

%fused_computation.1 (param_0.1: f32[8,16], param_1: f32[]) -> f32[16] {
  %param_0.1 = f32[8,16]{1,0} parameter(0)
  %param_1 = f32[] parameter(1)
  ROOT %reduce.1 = f32[16]{0} reduce(%param_0.1, %param_1), dimensions={0}, to_apply=%region_0.1
}

%fused_computation.2 (param_0.2: f32[8,16]) -> f32[4,16] {
  %param_0.2 = f32[8,16]{1,0} parameter(0)
  ROOT %slice.1 = f32[4,16]{1,0} slice(%param_0.2), slice={[0:4], [0:16]}
}

%fused_computation.3 (param_0.3: f32[16], param_1.3: f32[8,8]) -> f32[16] {
  %param_0.3 = f32[16]{0} parameter(0)
  %param_1.3 = f32[8,8]{1,0} parameter(1)
  ROOT %add.3 = f32[16]{0} add(%param_0.3, %param_0.3)
}

ENTRY %main.1 (kernel.1: f32[16], x.1: f32[8,16]) -> (f32[16], f32[16]) {
  %kernel.1 = f32[16]{0} parameter(0), metadata={op_name="state.params[\\'backbone\\'][\\'conv2\\'][\\'kernel\\']"}
  %x.1 = f32[8,16]{1,0} parameter(1), metadata={op_name="images"}
  %zero = f32[] constant(0)
  %turned = f32[16,8]{1,0} fusion(%x.1), kind=kLoop, calls=%fused_computation, metadata={op_name="jit(train_step)/jvp(Interflow)/backbone/conv1/norm/max" stack_frame_id=3}
  %product = f32[8,8]{1,0} dot(%x.1, %turned), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(train_step)/transpose(jvp(Interflow))/backbone/conv9/cond/branch_0_fun/bhwi,io->bhwo/dot_general"}
  %sum = f32[16]{0} fusion(%x.1, %zero), kind=kCustom, calls=%fused_computation.1, metadata={op_name="jit(train_step)/jvp()/reduce_sum"}
  %cut = f32[4,16]{1,0} fusion(%x.1), kind=kLoop, calls=%fused_computation.2
  %convolution = f32[8,8]{1,0} convolution(%cut, %turned), dim_labels=bf_io->bf
  %updated = f32[16]{0} fusion(%kernel.1, /*index=1*/%convolution), kind=kLoop, calls=%fused_computation.3, metadata={op_name="jit(train_step)/add"}
  ROOT %tuple = (f32[16]{0}, f32[16]{0}) tuple(%updated, %sum)
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("operation", "kind", "layer"),
    [
        ("turned", "transpositions and copies", "backbone/conv1/norm"),
        ("product", "matrix products", "backbone/conv9, backward"),
        ("sum", "reductions", ""),
        ("cut", "transpositions and copies", "backbone/conv2/kernel"),
        ("convolution", "convolutions", "backbone/conv2/kernel"),
        ("updated", "elementwise loops", "backbone/conv2/kernel"),
        ("absent", "other", ""),
    ],
)
def test_kinds_and_layers(operation, kind, layer):
    program = parse(TEXT)
    assert program.kind(operation) == kind
    assert kind in KINDS
    assert program.layer(operation) == layer
