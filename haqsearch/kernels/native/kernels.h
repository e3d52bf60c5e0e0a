// Which implementation does what: one table an instruction set, the best one first.
#pragma once

#include <string>
#include <vector>

#include "op.h"

namespace haq {

// out = epilogue(sum over the inputs of (q - zero_point) * multiplier): the residual add, with one shift and one rounding.
// One input with multiplier 1 is a rescaling. |every sum| < 2^62.
struct SumSpec {
  std::vector<int32_t> zero_points;
  std::vector<int64_t> multipliers;
  Epilogue epilogue;  // one entry (per tensor)
};

// out = epilogue(sum over the window of (q - zero_point)); outside the image lies the zero point.
struct PoolSpec {
  int kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1;
  int32_t zero_point = 0;  // of the input (average); the border a maximum must ignore is never larger than a code
  Epilogue epilogue;       // average: one entry
};

// A factory gives null where it has nothing to offer for this spec; then the next table is asked.
struct Kernels {
  const char* name;
  bool (*available)();  // whether this CPU has the instructions
  OpPointer (*conv2d)(const ConvSpec&) = nullptr;         // whatever is none of the following
  OpPointer (*depthwise)(const ConvSpec&) = nullptr;      // groups == in_channels == out_channels
  OpPointer (*binary)(const ConvSpec&) = nullptr;         // bit planes; few bits on both sides, groups == 1
  OpPointer (*linear)(const ConvSpec&) = nullptr;         // 1 x 1, few rows: reads packed weights
  OpPointer (*weighted_sum)(const SumSpec&) = nullptr;
  OpPointer (*average)(const PoolSpec&) = nullptr;
  OpPointer (*maximum)(const PoolSpec&) = nullptr;
};

extern const Kernels kPortable;
#if defined(HAQ_X86)
extern const Kernels kAvx2, kAvx512;
#endif
#if defined(HAQ_AMX)
extern const Kernels kAmx;
#endif
#if defined(HAQ_NEON)
extern const Kernels kNeon;
#endif

// Tables this CPU can run, best first, "portable" last; `isa` limits the choice to that table and the simpler ones.
std::vector<const Kernels*> tables(const std::string& isa);

// The best implementation for a spec. `few_rows`: few rows are expected, so a linear layer is bound by reading its weights.
OpPointer make_conv(const ConvSpec& spec, const std::string& isa, bool few_rows);
OpPointer make_weighted_sum(const SumSpec& spec, const std::string& isa);
OpPointer make_average(const PoolSpec& spec, const std::string& isa);
OpPointer make_maximum(const PoolSpec& spec, const std::string& isa);

}  // namespace haq
