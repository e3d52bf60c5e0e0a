// Factories of the dense AVX2 convolutions.
#pragma once

#include "op.h"

namespace haq::avx2 {

OpPointer make_conv(const ConvSpec& spec);  // any dense convolution

}  // namespace haq::avx2
