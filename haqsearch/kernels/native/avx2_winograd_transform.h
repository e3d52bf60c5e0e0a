// A tile of codes to the factors that are multiplied, and sums of products to outputs: B and A of avx2_winograd.cpp, which
// alone includes this.
#pragma once

#include <algorithm>
#include <cstddef>

#include "avx2_tile.h"
#include "avx2_winograd.h"

namespace haq::avx2 {
namespace {

constexpr int tiles_of(int outputs, int a_tile) { return (outputs + a_tile - 1) / a_tile; }

// Bytes from a tile's first row (or column) to each of them. Those that only outputs beyond the image would need are
// replaced by the last one there is.
template <typename Algorithm>
struct Offsets {
  Offsets(int outputs, std::ptrdiff_t stride) : last(tiles_of(outputs, Algorithm::kOutputs) - 1) {
    for (int k = 0; k < Algorithm::kTile; ++k) {
      inner[k] = k * stride;
      outer[k] = std::min(k, Algorithm::kStride * (outputs - 1 - Algorithm::kOutputs * last) + 2) * stride;
    }
  }

  const std::ptrdiff_t* of(int tile) const { return tile == last ? outer : inner; }

  int last;
  std::ptrdiff_t inner[Algorithm::kTile], outer[Algorithm::kTile];
};

// The codes of a tile, `depth` channels of each pixel, to factors [place][depth]; where they are bytes, those that may be
// negative are raised by `raise`.
template <typename Algorithm, typename Lanes>
class InputTransform {
 public:
  InputTransform(int depth, int raise) : depth_(depth), raise_(raise) {}

  // Channels beyond the input's are whatever lies there: their weights are zero.
  void operator()(const uint8_t* from, const std::ptrdiff_t* rows, const std::ptrdiff_t* columns, uint8_t* to) const {
    int c = 0;
    for (; c + kVector <= depth_; c += kVector) channels<kVector>(from + c, rows, columns, to + c * kCodeBytes);
    if (c < depth_) channels<16>(from + c, rows, columns, to + c * kCodeBytes);
  }

 private:
  static constexpr int kTile = Algorithm::kTile, kCodeBytes = Lanes::kCodeBytes;
  static constexpr int kVector = 32 / kCodeBytes;  // channels of a register
  static constexpr Order<Algorithm> kOrder{};

  // Channels of a register, or 16 at the end.
  template <int Channels>
  inline __attribute__((always_inline)) void put(uint8_t* to, int position, __m256i v) const {
    if (kCodeBytes == 1 && Algorithm::signed_at(position)) v = Lanes::add(v, _mm256_set1_epi8(static_cast<char>(raise_)));
    uint8_t* const place = to + kOrder.place[position] * (std::ptrdiff_t(depth_) * kCodeBytes);
    if (Channels == kVector) _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), v);
    else _mm_storeu_si128(reinterpret_cast<__m128i*>(place), _mm256_castsi256_si128(v));
  }

  template <int Channels>
  inline __attribute__((always_inline)) void channels(const uint8_t* from, const std::ptrdiff_t* rows,
                                                      const std::ptrdiff_t* columns, uint8_t* to) const {
    if constexpr (Algorithm::kOutputs == 2) rows_first<Channels>(from, rows, columns, to);
    else columns_first<Channels>(from, rows, columns, to);
  }

  // One transformed row at a time: all of them would not fit the registers.
  template <int Channels>
  inline __attribute__((always_inline)) void rows_first(const uint8_t* from, const std::ptrdiff_t* rows,
                                                        const std::ptrdiff_t* columns, uint8_t* to) const {
    const auto load = [&](int y) {
      const uint8_t* at = from + rows[y];
      asm("" : "+r"(at));  // gcc would keep the 25 sums of rows and columns, and has no registers for them
      Row<kTile> d;
#pragma GCC unroll 5
      for (int x = 0; x < kTile; ++x) d.column[x] = Lanes::load(at + columns[x]);
      return d;
    };
    const auto store = [&](int y, const Row<kTile>& t) {
      __m256i v[kTile];
      Algorithm::template input<Lanes>(t.column, v);
#pragma GCC unroll 5
      for (int x = 0; x < kTile; ++x) put<Channels>(to, kTile * y + x, v[x]);
    };
    Algorithm::template rows<Lanes>(load, store);
  }

  // Columns of a row at a time; then the rows of even inputs, a column at a time.
  template <int Channels>
  void columns_first(const uint8_t* from, const std::ptrdiff_t* rows, const std::ptrdiff_t* columns, uint8_t* to) const {
    constexpr int kEven = Algorithm::kEven;
    __m256i even[kTile][kEven];
#pragma GCC unroll 1
    for (int y = 0; y < kTile; ++y) {
      __m256i d[kTile], t[kTile];
#pragma GCC unroll 9
      for (int x = 0; x < kTile; ++x) d[x] = Lanes::load(from + rows[y] + columns[x]);
      Algorithm::template input<Lanes>(d, t);
#pragma GCC unroll 9
      for (int x = 0; x < kTile; ++x)
        if (y % 2) put<Channels>(to, (kEven + y / 2) * kTile + x, t[x]);
        else even[x][y / 2] = t[x];
    }
#pragma GCC unroll 1
    for (int x = 0; x < kTile; ++x) {
      __m256i t[kEven];
      Algorithm::template even<Lanes>(even[x], t);
#pragma GCC unroll 5
      for (int y = 0; y < kEven; ++y) put<Channels>(to, kTile * y + x, t[y]);
    }
  }

  int depth_, raise_;
};

// The sums of a tile's cells to the accumulators of its outputs, sixteen channels.
template <typename Algorithm>
inline __attribute__((always_inline)) void transform_output(const int32_t (&sums)[Order<Algorithm>::kCells][kTileChannels],
                                                            __m256i (&acc)[Algorithm::kOutputs * Algorithm::kOutputs][2]) {
  constexpr int kOutputs = Algorithm::kOutputs, kClasses = Algorithm::kClasses;
  constexpr int kUndo = static_cast<int>(inverse(Algorithm::kTimes));
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    __m256i half[kOutputs][kClasses];
#pragma GCC unroll 7
    for (int x = 0; x < kClasses; ++x) {
      __m256i m[kClasses], y[kOutputs];
#pragma GCC unroll 7
      for (int k = 0; k < kClasses; ++k)
        m[k] = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums[kClasses * k + x] + 8 * h));
      Algorithm::output(m, y);
#pragma GCC unroll 4
      for (int k = 0; k < kOutputs; ++k) half[k][x] = y[k];
    }
#pragma GCC unroll 4
    for (int k = 0; k < kOutputs; ++k) {
      __m256i y[kOutputs];
      Algorithm::output(half[k], y);
#pragma GCC unroll 4
      for (int x = 0; x < kOutputs; ++x)
        acc[kOutputs * k + x][h] = Algorithm::kTimes == 1 ? y[x] : _mm256_mullo_epi32(y[x], _mm256_set1_epi32(kUndo));
    }
  }
}

}  // namespace
}  // namespace haq::avx2
