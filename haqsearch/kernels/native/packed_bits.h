// What the kernels that read packed weights share: weights as small codes, and the rows of a linear layer as work.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "op.h"

namespace haq {

// weight = base + step * code, with 0 <= code < 2^bits: two-valued weights take one bit, whatever the two values are.
struct Levels {
  int base = 0, step = 1, bits = 1;

  explicit Levels(const std::vector<int8_t>& weight) {
    const auto [low, high] = std::minmax_element(weight.begin(), weight.end());
    base = *low;
    int divisor = 0;
    for (const int8_t w : weight) divisor = std::gcd(divisor, w - base);
    step = std::max(1, divisor);
    while (((*high - base) / step) >> bits) ++bits;
  }

  int code(int8_t weight) const { return (weight - base) / step; }
  int largest(const std::vector<int8_t>& weight) const {
    return code(*std::max_element(weight.begin(), weight.end()));
  }
};

// A linear layer's weights, (outputs, inputs), as codes; beyond either end lies zero.
struct Codes {
  const ConvSpec& spec;
  Levels levels;

  explicit Codes(const ConvSpec& s) : spec(s), levels(s.weight) {}
  bool has(int input) const { return input < spec.in_channels; }
  int at(int output, int input) const {
    if (output >= spec.out_channels || !has(input)) return 0;
    return levels.code(spec.weight[size_t(output) * spec.in_channels + input]);
  }
};

// One row of a linear layer: its features, where its outputs go, and the image it is of.
struct Row {
  const uint8_t* from;
  uint8_t* to;
  int64_t image;
};

inline constexpr size_t kLine = 64;  // bytes of a line of the cache

// Where the first line of `memory` begins: as much as kLine - 1 bytes behind its own beginning.
inline uint8_t* on_line(std::vector<uint8_t>& memory) {
  return memory.data() + -reinterpret_cast<uintptr_t>(memory.data()) % kLine;
}

inline constexpr int kRows = 8;  // rows that go through the weights together

// The same made ready: tables of their features, where their outputs go, the sums of their features.
struct ReadyRows {
  // features: of a row; padded: with zeros behind the last; table: bytes of a row's tables
  ReadyRows(std::vector<uint8_t>& memory, int features, size_t padded, size_t table)
      : features_(features), table_(table), padded_(padded) {
    if (memory.size() < kRows * table + kLine - 1) memory.resize(kRows * table + kLine - 1);
    tables_ = on_line(memory);
  }

  // make(features, tables) fills the tables of a row.
  template <typename Make>
  void take(const Row* rows, int count, Make make) {
    for (int r = 0; r < count; ++r) {
      std::copy_n(rows[r].from, features_, padded_.data());
      make(padded_.data(), tables_ + r * table_);
      to[r] = rows[r].to;
      sum[r] = std::accumulate(rows[r].from, rows[r].from + features_, 0);
    }
  }

  const uint8_t* tables(int row) const { return tables_ + row * table_; }

  uint8_t* to[kRows];
  int32_t sum[kRows];

 private:
  uint8_t* tables_;  // in memory that the caller keeps: too large to be cleared for every row
  int features_;
  size_t table_;
  std::vector<uint8_t> padded_;
};

// A linear layer's unit is one panel of outputs for one image: image * panels + panel. Threads thus share the weights of
// a single image, and the rows of several images read a panel while it is in the cache.
//
// Calls prepare(rows, count) for every few rows of the units [first, end), then multiply(panel, row, count) for each panel
// with the rows among them that have it.
template <typename Prepare, typename Multiply>
void for_rows(const View& in, const View& out, int64_t panels, int64_t first, int64_t end, Prepare prepare,
              Multiply multiply) {
  Row rows[kRows];
  int count = 0;
  const auto flush = [&] {
    prepare(rows, count);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const auto included = [&](const Row& row) {
        const int64_t unit = row.image * panels + panel;
        return unit >= first && unit < end;
      };
      int from = 0, to = count;
      while (from < to && !included(rows[from])) ++from;
      while (to > from && !included(rows[to - 1])) --to;
      if (from < to) multiply(static_cast<int>(panel), from, to - from);
    }
    count = 0;
  };
  for (int64_t image = first / panels; image * panels < end; ++image)
    for (int y = 0; y < out.height; ++y)
      for (int x = 0; x < out.width; ++x) {
        rows[count++] = {in.at(image, y, x), out.at(image, y, x), image};
        if (count == kRows) flush();
      }
  if (count) flush();
}

}  // namespace haq
