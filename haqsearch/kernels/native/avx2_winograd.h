// Winograd's minimal filtering of 3 x 3 in integers, two by two or four by four outputs at a time: what is transformed how, and
// in what order the products lie. Included by the files avx2_winograd*, of which avx2_winograd.cpp is the beginning.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace haq::avx2 {
namespace {

// Operands of int16: any codes and weights. Sixteen channels a vector.
struct Words {
  using Weight = int16_t;
  static constexpr int kCodeBytes = 2;

  static __m256i load(const uint8_t* codes) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  }
  static __m256i add(__m256i a, __m256i b) { return _mm256_add_epi16(a, b); }
  static __m256i sub(__m256i a, __m256i b) { return _mm256_sub_epi16(a, b); }
};

// Bytes, thirty-two channels a vector: transformed codes are raised to 0 .. 4 * largest code, which must lie in 0 .. 255,
// transformed weights must lie in int8. What raising adds to the results is taken off again.
struct Bytes {
  using Weight = int8_t;
  static constexpr int kCodeBytes = 1;

  static __m256i load(const uint8_t* codes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)); }
  static __m256i add(__m256i a, __m256i b) { return _mm256_add_epi8(a, b); }
  static __m256i sub(__m256i a, __m256i b) { return _mm256_sub_epi8(a, b); }
};

// Codes of a row of a tile, a column's channels each.
template <int kTile>
struct Row {
  __m256i column[kTile];
};

template <int kTile, typename Operation>
inline __attribute__((always_inline)) Row<kTile> each(const Row<kTile>& a, const Row<kTile>& b, Operation operation) {
  Row<kTile> result;
#pragma GCC unroll 9
  for (int x = 0; x < kTile; ++x) result.column[x] = operation(a.column[x], b.column[x]);
  return result;
}

// Stride 1, F(2, 3): 4 multiplications for 2 outputs, where the direct way has 6; 16 instead of 36 in two dimensions.
// G has halves; 2 G has none, so the sums come out four times as large: exact, and the epilogue shifts by two more.
// With codes 0 .. a, B' d B lies in -2 a .. 2 a, but at (1, 1) in 0 .. 4 a; |2G g (2G)'| <= 9 * 128.
struct StrideOne {
  static constexpr int kStride = 1, kOutputs = 2, kTile = 4, kClasses = 4, kDoublings = 2, kTimes = 1;
  static constexpr int class_of(int position) { return position; }
  static constexpr bool signed_at(int position) { return position != 5; }

  template <typename Lanes>
  static void input(const __m256i* d, __m256i* t) {
    t[0] = Lanes::sub(d[0], d[2]);
    t[1] = Lanes::add(d[1], d[2]);
    t[2] = Lanes::sub(d[2], d[1]);
    t[3] = Lanes::sub(d[1], d[3]);
  }
  // The same of the rows that row(y) loads: put(i, t[i]).
  template <typename Lanes, typename Load, typename Put>
  static inline __attribute__((always_inline)) void rows(Load row, Put put) {
    const auto d1 = row(1), d2 = row(2);
    put(0, each(row(0), d2, Lanes::sub));
    put(1, each(d1, d2, Lanes::add));
    put(2, each(d2, d1, Lanes::sub));
    put(3, each(d1, row(3), Lanes::sub));
  }
  static void weights(const int* g, int* u) {
    u[0] = 2 * g[0], u[1] = g[0] + g[1] + g[2], u[2] = g[0] - g[1] + g[2], u[3] = 2 * g[2];
  }
  static void output(const __m256i* m, __m256i* y) {
    y[0] = _mm256_add_epi32(_mm256_add_epi32(m[0], m[1]), m[2]);
    y[1] = _mm256_sub_epi32(_mm256_sub_epi32(m[1], m[2]), m[3]);
  }
};

// Stride 2: even inputs meet the outer taps, F(2, 2), 3 multiplications instead of 4; odd ones the middle tap.
//   y0 = d0 g0 + d2 g2 + d1 g1,  y1 = d2 g0 + d4 g2 + d3 g1
// 5 multiplications instead of 6; 25 instead of 36 in two dimensions. With codes 0 .. a, B' d B lies in -2 a .. 2 a;
// |G g G'| <= 4 * 128.
struct StrideTwo {
  static constexpr int kStride = 2, kOutputs = 2, kTile = 5, kClasses = 3, kDoublings = 0, kTimes = 1;
  static constexpr int class_of(int position) { return position > 2 ? (position - 3) * 2 : position; }
  static constexpr bool signed_at(int) { return true; }

  template <typename Lanes>
  static void input(const __m256i* d, __m256i* t) {
    t[0] = Lanes::sub(d[0], d[2]);
    t[1] = d[2];
    t[2] = Lanes::sub(d[4], d[2]);
    t[3] = d[1];
    t[4] = d[3];
  }
  template <typename Lanes, typename Load, typename Put>
  static inline __attribute__((always_inline)) void rows(Load row, Put put) {
    const auto d2 = row(2);
    put(1, d2);
    put(0, each(row(0), d2, Lanes::sub));
    put(2, each(row(4), d2, Lanes::sub));
    put(3, row(1));
    put(4, row(3));
  }
  static void weights(const int* g, int* u) { u[0] = g[0], u[1] = g[0] + g[2], u[2] = g[2], u[3] = u[4] = g[1]; }
  static void output(const __m256i* m, __m256i* y) {
    y[0] = _mm256_add_epi32(m[0], m[1]);
    y[1] = _mm256_add_epi32(m[1], m[2]);
  }
};

// Stride 2, even inputs by F(4, 2), at the points 0, 1, -1, 2 and infinity: 9 multiplications instead of 12 for 4 outputs, 81
// instead of 144 in two dimensions. G has sixths; 6 G has none, and sums come out 36 times as large: 9 times is undone modulo
// 2^32. With codes 0 .. a, B' d B lies in -18 a .. 18 a; |6G g (6G)'| <= 36 * 128.
struct StrideTwoFour {
  static constexpr int kStride = 2, kOutputs = 4, kTile = 9, kClasses = 7, kDoublings = 2, kTimes = 9;
  static constexpr int kEven = 5;  // positions of even inputs
  static constexpr int class_of(int position) {
    constexpr int classes[kTile] = {0, 1, 2, 3, 4, 0, 5, 6, 4};
    return classes[position];
  }
  static constexpr bool signed_at(int) { return true; }

  // Of even inputs e.
  template <typename Lanes>
  static inline __attribute__((always_inline)) void even(const __m256i* e, __m256i* t) {
    const __m256i outer = Lanes::sub(e[3], e[1]), inner = Lanes::sub(e[1], e[2]), first = Lanes::sub(e[0], e[2]);
    t[0] = Lanes::add(Lanes::add(first, first), outer);
    t[1] = Lanes::sub(Lanes::sub(outer, e[1]), e[2]);
    t[2] = Lanes::add(Lanes::add(inner, inner), Lanes::add(inner, outer));
    t[3] = outer;
    t[4] = Lanes::sub(Lanes::sub(e[4], e[2]), Lanes::add(outer, outer));
  }
  template <typename Lanes>
  static inline __attribute__((always_inline)) void input(const __m256i* d, __m256i* t) {
    const __m256i e[kEven] = {d[0], d[2], d[4], d[6], d[8]};
    even<Lanes>(e, t);
#pragma GCC unroll 4
    for (int i = 0; i < kOutputs; ++i) t[kEven + i] = d[2 * i + 1];
  }
  static void weights(const int* g, int* u) {
    u[0] = 3 * g[0], u[1] = -3 * (g[0] + g[2]), u[2] = g[2] - g[0], u[3] = g[0] + 2 * g[2], u[4] = 6 * g[2];
    for (int i = 0; i < kOutputs; ++i) u[kEven + i] = 6 * g[1];
  }
  static void output(const __m256i* m, __m256i* y) {
    const __m256i sum = _mm256_add_epi32(m[1], m[2]), difference = _mm256_sub_epi32(m[1], m[2]);
    const auto two = [&](int bits) { return _mm256_slli_epi32(m[3], bits); };
    y[0] = _mm256_add_epi32(_mm256_add_epi32(m[0], m[3]), sum);
    y[1] = _mm256_add_epi32(_mm256_add_epi32(difference, two(1)), m[5]);
    y[2] = _mm256_add_epi32(_mm256_add_epi32(sum, two(2)), m[6]);
    y[3] = _mm256_add_epi32(_mm256_add_epi32(difference, two(3)), m[4]);
  }
};

// The inverse of an odd number modulo 2^32.
constexpr uint32_t inverse(uint32_t odd) {
  uint32_t x = odd;  // right in three bits, and in twice as many after every step
  for (int i = 0; i < 4; ++i) x *= 2 - odd * x;
  return x;
}

// The order of transformed codes and weights: positions of a tile, those of a cell together.
template <typename Algorithm>
struct Order {
  static constexpr int kTile = Algorithm::kTile, kPositions = kTile * kTile;
  static constexpr int kCells = Algorithm::kClasses * Algorithm::kClasses;

  constexpr Order() {
    for (int cell = 0, next = 0; cell < kCells; first[++cell] = next)
      for (int position = 0; position < kPositions; ++position)
        if (cell_of(position) == cell) place[position] = next++;
  }

  static constexpr int cell_of(int position) {
    return Algorithm::class_of(position / kTile) * Algorithm::kClasses + Algorithm::class_of(position % kTile);
  }

  int place[kPositions] = {}, first[kCells + 1] = {};  // first: place of each cell's
};

}  // namespace
}  // namespace haq::avx2
