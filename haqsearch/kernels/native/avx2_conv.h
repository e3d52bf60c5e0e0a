// Factories of the dense AVX2 convolutions.
#pragma once

#include "op.h"

namespace haq::avx2 {

OpPointer make_conv(const ConvSpec& spec);  // any dense convolution

// 3 x 3, stride 1 or 2; null where the direct way is as fast, which widens its int8 sums every `steps_a_block` steps (0: it
// takes int16 operands).
OpPointer make_winograd(const ConvSpec& spec, double steps_a_block);

}  // namespace haq::avx2
