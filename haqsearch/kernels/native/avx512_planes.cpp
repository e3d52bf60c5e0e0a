// Linear layers of few rows and 1-bit weights, by looking up: four inputs have 16 sums of subsets, and four bits say which one
// an output takes. A sum has ten bits: two tables of five, so that eight of them add up in a byte. A vector holds 64 outputs.
//
// VPERMB looks at six bits of an index. With the 16 entries four times over, the two that are none of its business do not
// matter: no mask.
#include <algorithm>
#include <numeric>

#include "avx512_epilogue.h"
#include "kernels.h"
#include "packed_bits.h"
#include "subset_sums.h"

namespace haq {
namespace {

constexpr int kVectors = 2, kBytes = 64;  // a panel: of outputs, one a byte
constexpr int kOutputs = kVectors * kBytes, kLanes = 16;
constexpr int kInputs = 8;            // of a step: four in the low half of each byte, four in the high one
constexpr int kStepBytes = kOutputs;  // one bit a weight
constexpr int kTable = 64;            // bytes of tables for a step: twice two
constexpr int kBytewise = 4;          // steps: 8 times 31 still is a byte
constexpr int kBlock = 528;           // steps: a fourth part of them times 8 * 31 still is an int16

using Digits = __m512i[kVectors][2];  // sums of the tables' two digits

// The output whose sums are in a byte, when those of bytes at even and at odd places, lower and upper int16 of every
// 128 bits, have been taken apart.
constexpr int place(int byte) {
  const int lane = byte / 2;
  return byte % 2 * 32 + lane % 8 / 4 * 16 + lane / 8 * 4 + lane % 4;
}

// One step. First: of the digits' sums, which are not cleared before.
template <bool First>
inline __attribute__((always_inline)) void look_up(const uint8_t* weight, const uint8_t* tables, Digits& digits) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m512i table[2];
#pragma GCC unroll 2
    for (int digit = 0; digit < 2; ++digit) {
      const auto* from = reinterpret_cast<const __m128i*>(tables) + 2 * half + digit;
      table[digit] = _mm512_broadcast_i32x4(_mm_loadu_si128(from));
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const __m512i bits = avx512::load(weight + kBytes * v), four = half ? _mm512_srli_epi16(bits, 4) : bits;
#pragma GCC unroll 2
      for (int digit = 0; digit < 2; ++digit) {
        const __m512i found = _mm512_permutexvar_epi8(four, table[digit]);
        digits[v][digit] = First && half == 0 ? found : _mm512_add_epi8(digits[v][digit], found);
      }
    }
  }
}

// The same in int16: all lanes as they are, and their upper bytes.
struct Wide {
  __m512i lanes[kVectors][2], uppers[kVectors][2];

  Wide() {
    for (int v = 0; v < kVectors; ++v)
      for (int digit = 0; digit < 2; ++digit) lanes[v][digit] = uppers[v][digit] = _mm512_setzero_si512();
  }

  inline __attribute__((always_inline)) void add(const Digits& digits) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 2
      for (int digit = 0; digit < 2; ++digit) {
        lanes[v][digit] = _mm512_add_epi16(lanes[v][digit], digits[v][digit]);
        uppers[v][digit] = _mm512_add_epi16(uppers[v][digit], _mm512_srli_epi16(digits[v][digit], 8));
      }
  }

  void add_to(int32_t* sums) const {
    for (int v = 0; v < kVectors; ++v, sums += kBytes) {
      __m512i lower[2];  // what is left without the upper bytes, modulo 2^16
      for (int digit = 0; digit < 2; ++digit)
        lower[digit] = _mm512_sub_epi16(lanes[v][digit], _mm512_slli_epi16(uppers[v][digit], 8));
      add_digits(sums, lower);
      add_digits(sums + 2 * kLanes, uppers[v]);
    }
  }

 private:
  static void add_digits(int32_t* sums, const __m512i (&digits)[2]) {
    const __m512i weights = _mm512_set1_epi32(1 | 32 << 16);
    const __m512i pairs[2] = {_mm512_unpacklo_epi16(digits[0], digits[1]), _mm512_unpackhi_epi16(digits[0], digits[1])};
    for (int i = 0; i < 2; ++i, sums += kLanes)
      _mm512_store_si512(sums, _mm512_add_epi32(avx512::load(sums), _mm512_madd_epi16(pairs[i], weights)));
  }
};

// Adds to sums the inputs of up to kBlock steps whose bits are set.
void add_block(const uint8_t* weight, const uint8_t* tables, int steps, int32_t* sums) {
  Wide wide;
  Digits digits;
  for (; steps >= kBytewise; steps -= kBytewise, weight += kBytewise * kStepBytes, tables += kBytewise * kTable) {
    look_up<true>(weight, tables, digits);
#pragma GCC unroll 3
    for (int i = 1; i < kBytewise; ++i) look_up<false>(weight + i * kStepBytes, tables + i * kTable, digits);
    wide.add(digits);
  }
  if (steps > 0) {
    look_up<true>(weight, tables, digits);
#pragma GCC unroll 1
    for (int i = 1; i < steps; ++i) look_up<false>(weight + i * kStepBytes, tables + i * kTable, digits);
    wide.add(digits);
  }
  wide.add_to(sums);
}

class Planes final : public Op {
 public:
  explicit Planes(const Codes& codes)
      : inputs_(codes.spec.in_channels), outputs_(codes.spec.out_channels), steps_((inputs_ + kInputs - 1) / kInputs),
        panels_((outputs_ + kOutputs - 1) / kOutputs), levels_(codes.levels),
        requantizer_(codes.spec.folded(), codes.spec.bound()) {
    memory_.resize(size_t(packed_bytes()) + kBytes - 1);
    packed_ = memory_.data() + -reinterpret_cast<uintptr_t>(memory_.data()) % kBytes;
    uint8_t* byte = packed_;
    for (int panel = 0; panel < panels_; ++panel)
      for (int k = 0; k < steps_; ++k)
        for (int i = 0; i < kOutputs; ++i, ++byte) {
          const int n = panel * kOutputs + i / kBytes * kBytes + place(i % kBytes);
          for (int input = 0; input < kInputs; ++input)
            *byte |= static_cast<uint8_t>(codes.at(n, k * kInputs + input) << input);
        }
  }

  int64_t units(const View&, int images) const override { return int64_t(images) * panels_; }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    thread_local std::vector<uint8_t> tables;
    ReadyRows ready(tables, inputs_, size_t(steps_) * kInputs, size_t(steps_) * kTable);
    const auto prepare = [&](const Row* rows, int count) {
      ready.take(rows, count, [&](const uint8_t* x, uint8_t* to) {
        for (int four = 0; four < 2 * steps_; ++four) subset_sums(x + 4 * four, to + kTable / 2 * four);
      });
    };
    for_rows(*in, out, panels_, first, end, prepare, [&](int panel, int row, int count) {
      for (int r = row; r < row + count; ++r) finish(panel, ready.tables(r), ready.to[r], ready.sum[r]);
    });
  }

  const char* method() const override { return "avx512 tables, 1-bit weights"; }
  int64_t packed_bytes() const override { return int64_t(panels_) * panel_bytes(); }

 private:
  int64_t panel_bytes() const { return int64_t(steps_) * kStepBytes; }

  void finish(int panel, const uint8_t* tables, uint8_t* to, int32_t sum) const {
    alignas(64) int32_t acc[kOutputs] = {};
    const uint8_t* const weight = packed_ + panel * panel_bytes();
    for (int k = 0; k < steps_; k += kBlock)
      add_block(weight + k * kStepBytes, tables + k * kTable, std::min(kBlock, steps_ - k), acc);
    for (int32_t& codes : acc) codes = levels_.base * sum + levels_.step * codes;
    const int first = panel * kOutputs / kLanes, blocks = std::min(kOutputs, outputs_ - panel * kOutputs + kLanes - 1) / kLanes;
    int block = 0;
    for (; block + 1 < blocks; block += 2) requantizer_.store<2>(acc + block * kLanes, &to, 1, first + block);
    if (block < blocks) requantizer_.store<1>(acc + block * kLanes, &to, 1, first + block);
  }

  int inputs_, outputs_, steps_, panels_;
  Levels levels_;
  avx512::Requantizer requantizer_;
  std::vector<uint8_t> memory_;
  uint8_t* packed_ = nullptr;  // in `memory_`, at the beginning of a cache line
};

}  // namespace

OpPointer avx512_planes(const Codes& codes) { return std::make_unique<Planes>(codes); }

}  // namespace haq
