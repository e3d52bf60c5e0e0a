// The epilogue in plain C++, and helpers every table uses.
#pragma once

#include <algorithm>
#include <cstring>

#include "op.h"

namespace haq {

inline int32_t requantize(const Epilogue& e, int64_t acc, int channel) {
  const int64_t code = ((acc * e.multiplier[channel] + e.offset[channel]) >> e.shift[channel]) + e.zero_point;
  return static_cast<int32_t>(std::clamp<int64_t>(code, e.low, e.high));
}

inline void store(const Epilogue& e, uint8_t* pixel, int channel, int32_t code) {
  if (e.wide) {
    const int16_t value = static_cast<int16_t>(code);
    std::memcpy(pixel + 2 * channel, &value, 2);
  } else {
    pixel[channel] = static_cast<uint8_t>(code);
  }
}

}  // namespace haq
