// Factories of the dense AVX2 convolutions.
#pragma once

#include "op.h"

namespace haq::avx2 {

OpPointer make_conv(const ConvSpec& spec);      // any dense convolution
OpPointer make_winograd(const ConvSpec& spec);  // 3 x 3, stride 1 or 2, enough channels; else null

}  // namespace haq::avx2
