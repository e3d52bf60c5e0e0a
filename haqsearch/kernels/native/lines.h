// Output rows as the convolutions walk them.
#pragma once

#include "op.h"

namespace haq {

// Rows of output pixels, or all of them as one where they follow each other in memory without a gap.
struct Lines {
  int64_t count;
  int length;

  Lines(const ConvSpec& s, const View& in, const View& out, int64_t units) : count(units), length(out.width) {
    const auto dense = [&](const View& v) { return v.row == v.width * v.pixel && v.image == v.height * v.row; };
    const bool same = s.stride_h == 1 && s.stride_w == 1 && in.width == out.width && in.height == out.height;
    if (same && dense(in) && dense(out))
      count = 1, length = static_cast<int>(units * out.width);
  }
};

}  // namespace haq
