// Linear layers of few rows, bound by reading their weights: 1 to 4 bits each, packed densely, taken apart in registers;
// more bits a byte each.
//
// 1 and 2 bits: bit planes and tables, see avx2_planes.h. 3 bits: eight codes in three bytes, see avx2_threes.h.
// 4 bits: two inputs a byte, vpmaddubsw with the inputs made signed, which halves the sums: eight fit int16.
#include <cstring>

#include "avx2_epilogue.h"
#include "avx2_planes.h"
#include "avx2_threes.h"
#include "avx2_vectors.h"
#include "kernels.h"
#include "packed_bits.h"

namespace haq {
namespace {

// 4 bits: a word is eight outputs, each four inputs in the low halves of its bytes and four in the high ones.
class Nibbles {
  static constexpr int kWords = 4;

 public:
  static constexpr int kOutputs = 8 * kWords;
  static constexpr int kInputs = 8;
  static constexpr int kStepBytes = kBytes * kWords;
  static constexpr int kTable = 8;
  static constexpr bool kSigned = true;
  static constexpr const char* kName = "avx2 int16 blocks, 4-bit weights";

  static void pack(const Codes& codes, int output, int input, uint8_t* step) {
    for (int n = 0; n < kOutputs; ++n)
      for (int k = 0; k < 4; ++k)
        step[4 * n + k] =
            static_cast<uint8_t>(codes.at(output + n, input + k) | codes.at(output + n, input + 4 + k) << 4);
  }

  // Inputs less 128. What that takes from the sums is given back by `Linear`: 128 times the sum of the codes.
  static void prepare(const uint8_t* x, int steps, uint8_t* tables) {
    for (int i = 0; i < steps * kInputs; ++i) tables[i] = x[i] ^ 0x80;
  }

  // Not inlined: gcc 12 has too few registers for it and what comes after (1.1 times as fast).
  static __attribute__((noinline)) void multiply(const uint8_t* weight, const uint8_t* x, int steps, int32_t* sums) {
    __m256i total[kWords];
    for (auto& word : total) word = _mm256_setzero_si256();
    for (; steps >= kNarrow; steps -= kNarrow, weight += kNarrow * kStepBytes, x += kNarrow * kInputs) {
      __m256i narrow[kWords];
      for (auto& word : narrow) word = _mm256_setzero_si256();
#pragma GCC unroll 4
      for (int i = 0; i < kNarrow; ++i) add(weight + i * kStepBytes, x + i * kInputs, narrow);
      widen(narrow, total);
    }
    if (steps > 0) {
      __m256i narrow[kWords];
      for (auto& word : narrow) word = _mm256_setzero_si256();
#pragma GCC unroll 1
      for (int i = 0; i < steps; ++i) add(weight + i * kStepBytes, x + i * kInputs, narrow);
      widen(narrow, total);
    }
    for (int word = 0; word < kWords; ++word) store(sums + 8 * word, total[word]);
  }

 private:
  static constexpr int kNarrow = 4;  // steps: 4 * 2 * 2 * 15 * 128 fits int16

  static __m256i four(const uint8_t* x) {
    int32_t bytes;
    std::memcpy(&bytes, x, 4);
    return _mm256_set1_epi32(bytes);
  }

  static inline __attribute__((always_inline)) void add(const uint8_t* weight, const uint8_t* x, __m256i* narrow) {
    const __m256i front = four(x), back = four(x + 4);
    fetch_ahead<kStepBytes>(weight);
#pragma GCC unroll 4
    for (int word = 0; word < kWords; ++word) {
      const __m256i w = load(weight + word * kBytes), high = low_nibbles(_mm256_srli_epi16(w, 4));
      narrow[word] = _mm256_add_epi16(narrow[word], _mm256_maddubs_epi16(low_nibbles(w), front));
      narrow[word] = _mm256_add_epi16(narrow[word], _mm256_maddubs_epi16(high, back));
      settle(narrow[word]);
    }
  }

  static inline __attribute__((always_inline)) void widen(const __m256i* narrow, __m256i* total) {
    for (int word = 0; word < kWords; ++word)
      total[word] = _mm256_add_epi32(total[word], _mm256_madd_epi16(narrow[word], _mm256_set1_epi16(1)));
  }
};

// 5 to 8 bits, a byte each: pairs of inputs of 8 outputs a half vector, widened to int16 on loading, so exact.
class Wide {
 public:
  static constexpr int kWords = 4;
  static constexpr int kOutputs = 8 * kWords;
  static constexpr int kInputs = 2;
  static constexpr int kStepBytes = 16 * kWords;
  static constexpr int kTable = 4;
  static constexpr bool kSigned = false;
  static constexpr const char* kName = "avx2 int16, weights in bytes";

  static void pack(const Codes& codes, int output, int input, uint8_t* step) {
    for (int i = 0; i < kOutputs; ++i)
      for (int k = 0; k < kInputs; ++k) step[kInputs * i + k] = static_cast<uint8_t>(codes.at(output + i, input + k));
  }

  static void prepare(const uint8_t* x, int steps, uint8_t* tables) {
    for (int i = 0; i < steps * kInputs; ++i) tables[2 * i] = x[i], tables[2 * i + 1] = 0;
  }

  static void multiply(const uint8_t* weight, const uint8_t* x, int steps, int32_t* sums) {
    __m256i total[kWords];
    for (auto& word : total) word = _mm256_setzero_si256();
    for (int k = 0; k < steps; ++k, weight += kStepBytes) {
      fetch_ahead<kStepBytes>(weight);
      for (int word = 0; word < kWords; ++word) add(weight + word * 16, x + 4 * k, total[word]);
    }
    for (int word = 0; word < kWords; ++word) store(sums + 8 * word, total[word]);
  }

 private:
  static void add(const uint8_t* weight, const uint8_t* x, __m256i& total) {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    const __m256i w = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight)));
    total = _mm256_add_epi32(total, _mm256_madd_epi16(w, _mm256_set1_epi32(pair)));
  }
};

// Form: how weights are packed and multiplied. With kSigned it multiplies inputs less 128, else inputs.
template <typename Form>
class Linear final : public Op {
 public:
  explicit Linear(const Codes& codes)
      : inputs_(codes.spec.in_channels), outputs_(codes.spec.out_channels),
        steps_((inputs_ + Form::kInputs - 1) / Form::kInputs),
        panels_((outputs_ + Form::kOutputs - 1) / Form::kOutputs), levels_(codes.levels),
        requantizer_(codes.spec.folded(), outputs_, codes.spec.bound()) {
    memory_.resize(size_t(packed_bytes()) + kLine - 1);
    packed_ = on_line(memory_);
    uint8_t* step = packed_;
    for (int panel = 0; panel < panels_; ++panel)
      for (int k = 0; k < steps_; ++k, step += Form::kStepBytes)
        Form::pack(codes, panel * Form::kOutputs, k * Form::kInputs, step);
    if (Form::kSigned) {
      code_sums_.resize(size_t(panels_) * Form::kOutputs);
      for (int n = 0; n < outputs_; ++n)
        for (int k = 0; k < inputs_; ++k) code_sums_[n] += 128 * codes.at(n, k);
    }
  }

  int64_t units(const View&, int images) const override { return int64_t(images) * panels_; }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    thread_local std::vector<uint8_t> tables;
    ReadyRows ready(tables, inputs_, size_t(steps_) * Form::kInputs, size_t(steps_) * Form::kTable);
    const auto prepare = [&](const Row* rows, int count) {
      ready.take(rows, count, [&](const uint8_t* x, uint8_t* to) { Form::prepare(x, steps_, to); });
    };
    for_rows(*in, out, panels_, first, end, prepare, [&](int panel, int row, int count) {
      for (int r = row; r < row + count; ++r) finish(panel, ready.tables(r), ready.to[r], ready.sum[r]);
    });
  }

  const char* method() const override { return Form::kName; }
  int64_t packed_bytes() const override { return panels_ * static_cast<int64_t>(panel_bytes()); }

 private:
  size_t panel_bytes() const { return size_t(steps_) * Form::kStepBytes; }

  void finish(int panel, const uint8_t* tables, uint8_t* to, int32_t sum) const {
    alignas(32) int32_t acc[Form::kOutputs];
    Form::multiply(packed_ + panel * panel_bytes(), tables, steps_, acc);
    const int first = panel * Form::kOutputs, count = std::min(Form::kOutputs, outputs_ - first);
    for (int n = 0; n < Form::kOutputs; ++n) {
      const int32_t codes = acc[n] + (Form::kSigned ? code_sums_[first + n] : 0);
      acc[n] = levels_.base * sum + levels_.step * codes;
    }
    const int code_bytes = requantizer_.wide() ? 2 : 1;
    for (int n = 0; n < count; n += 16)
      requantizer_.store(to + code_bytes * (first + n), first + n, std::min(16, count - n), load(acc + n), load(acc + n + 8));
  }

  int inputs_, outputs_, steps_, panels_;
  Levels levels_;
  avx2::Requantizer requantizer_;
  std::vector<uint8_t> memory_;
  uint8_t* packed_ = nullptr;       // in `memory_`, at the beginning of a cache line
  std::vector<int32_t> code_sums_;  // 128 times the sum of each output's codes
};

}  // namespace

OpPointer avx2_linear(const ConvSpec& spec) {
  // The sum of the inputs times any weight must stay in int32.
  if (int64_t(spec.in_channels) * 255 * 255 > INT32_MAX || spec.out_channels < 64) return nullptr;
  const Codes codes(spec);
  switch (codes.levels.bits) {
    case 1: return std::make_unique<Linear<Planes<1>>>(codes);
    case 2: return std::make_unique<Linear<Planes<2>>>(codes);
    case 3: return std::make_unique<Linear<Threes>>(codes);
    case 4: return std::make_unique<Linear<Nibbles>>(codes);
    default: return std::make_unique<Linear<Wide>>(codes);
  }
}

}  // namespace haq
