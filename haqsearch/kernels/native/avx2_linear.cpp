// Linear layers of few rows, bound by reading their weights: 1 to 4 bits each, packed densely, taken apart in registers;
// more bits a byte each.
//
// 1 to 3 bits: bit planes and tables. Four inputs have 16 sums of subsets, and four bits of a plane say which one an output
// takes: vpshufb looks up 32 outputs at once. A sum has ten bits: two tables of five, so that eight of them add up in a byte.
// 4 bits: two outputs a byte, vpmaddubsw with the inputs made signed, which halves the sums: eight fit int16.
#include <cstring>
#include <type_traits>

#include "avx2_epilogue.h"
#include "kernels.h"
#include "packed_bits.h"

namespace haq {
namespace {

constexpr int kBytes = 32;  // of a vector

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }
inline void add_to(int32_t* to, __m256i value) { store(to, _mm256_add_epi32(load(to), value)); }
inline __m256i both_lanes(const uint8_t* from) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(0x0f)); }

// The sums of the subsets of four inputs: 16 bytes of their lower five bits, then 16 of the upper five.
inline void subset_sums(const uint8_t* four, uint8_t* tables) {
  const auto bits = [](int subset) {  // a byte for each input: whether it is in
    return (subset & 1) | (subset >> 1 & 1) << 8 | (subset >> 2 & 1) << 16 | (subset >> 3 & 1) << 24;
  };
  int32_t word;
  std::memcpy(&word, four, 4);
  const __m256i x = _mm256_set1_epi32(word), ones = _mm256_set1_epi16(1);
  const __m256i first = _mm256_setr_epi32(bits(0), bits(1), bits(2), bits(3), bits(8), bits(9), bits(10), bits(11));
  const __m256i second = _mm256_setr_epi32(bits(4), bits(5), bits(6), bits(7), bits(12), bits(13), bits(14), bits(15));
  const __m256i sums = _mm256_packs_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(x, first), ones),
                                          _mm256_madd_epi16(_mm256_maddubs_epi16(x, second), ones));
  const __m256i halves = _mm256_packus_epi16(_mm256_and_si256(sums, _mm256_set1_epi16(31)), _mm256_srli_epi16(sums, 5));
  store(tables, _mm256_permute4x64_epi64(halves, 0xd8));
}

// A panel's planes of bits. A word is 32 bytes, one for each output, with four inputs in the low and four in the high half;
// `Words` of them stand side by side: the planes of 32 outputs or, at one bit, those of 64.
template <int Bits>
class Planes {
 public:
  static constexpr int kWords = Bits == 1 ? 2 : Bits;
  static constexpr int kOutputs = Bits == 1 ? 64 : 32;
  static constexpr int kInputs = 8;         // of a step
  static constexpr int kStepBytes = kBytes * kWords;
  static constexpr int kTable = 64;         // bytes of tables for a step: twice two
  static constexpr const char* kName = Bits == 1 ? "avx2 tables, 1-bit weights"
                                       : Bits == 2 ? "avx2 tables, 2-bit weights" : "avx2 tables, 3-bit weights";

  static void pack(const Codes& codes, int output, int input, uint8_t* step) {
    for (int word = 0; word < kWords; ++word)
      for (int i = 0; i < kBytes; ++i)
        for (int k = 0; k < kInputs; ++k) {
          const int code = codes.at(output + (Bits == 1 ? word * kBytes : 0) + i, input + k);
          step[word * kBytes + i] |= static_cast<uint8_t>((Bits == 1 ? code : code >> word & 1) << k);
        }
  }

  static void prepare(const uint8_t* x, int steps, uint8_t* tables) {
    for (int group = 0; group < 2 * steps; ++group) subset_sums(x + 4 * group, tables + kBytes * group);
  }

  // sum of code * input for each output of a panel, in their order
  static void multiply(const uint8_t* weight, const uint8_t* tables, int steps, int32_t* sums) {
    int32_t totals[kWords * kBytes] = {};
    for (int k = 0; k < steps; k += kBlock)
      add_block(weight + k * kStepBytes, tables + k * kTable, std::min(kBlock, steps - k), totals);
    for (int n = 0; n < kOutputs; ++n) {
      sums[n] = totals[n];
      if (Bits > 1)
        for (int plane = 1; plane < kWords; ++plane) sums[n] += totals[plane * kBytes + n] << plane;
    }
  }

 private:
  static constexpr int kBlock = 512;  // steps: sums of 1024 tables' entries stay below 2^15
  static constexpr int kWide = 4;     // steps: 8 times 31 still is a byte

  struct Bytes {
    __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
  };

  static void add_block(const uint8_t* weight, const uint8_t* tables, int steps, int32_t* totals) {
    // Bytes as int16 lanes: the sum of the lanes, and that of their upper bytes, from which the lower ones follow.
    alignas(32) uint16_t wide[kWords][2][2][16] = {};
    for (int k = 0; k < steps; k += kWide) {
      Bytes sums[kWords];
      const int last = std::min(k + kWide, steps);
#pragma GCC unroll 1  // unrolled, gcc 12 puts the additions off and spills
      for (int i = k; i < last; ++i) look_up(weight + i * kStepBytes, tables + i * kTable, sums);
      for (int word = 0; word < kWords; ++word) {
        widen(sums[word].low, wide[word][0]);
        widen(sums[word].high, wide[word][1]);
      }
    }
    for (int word = 0; word < kWords; ++word)
      for (int i = 0; i < 16; ++i)
        for (int odd = 0; odd < 2; ++odd) {
          const auto sum = [&](int half) {
            const uint16_t upper = wide[word][half][1][i];
            return odd ? int32_t(upper) : int32_t(uint16_t(wide[word][half][0][i] - (upper << 8)));
          };
          totals[word * kBytes + 2 * i + odd] += sum(0) + 32 * sum(1);
        }
  }

  static void widen(__m256i bytes, uint16_t (*wide)[16]) {
    store(wide[0], _mm256_add_epi16(load(wide[0]), bytes));
    store(wide[1], _mm256_add_epi16(load(wide[1]), _mm256_srli_epi16(bytes, 8)));
  }

  static inline void look_up(const uint8_t* weight, const uint8_t* tables, Bytes* sums) {
    const __m256i low0 = both_lanes(tables), high0 = both_lanes(tables + 16);
    const __m256i low1 = both_lanes(tables + 32), high1 = both_lanes(tables + 48);
    for (int word = 0; word < kWords; ++word) {
      const __m256i w = load(weight + word * kBytes);
      const __m256i first = low_nibbles(w), second = low_nibbles(_mm256_srli_epi16(w, 4));
      sums[word].low = _mm256_add_epi8(sums[word].low, _mm256_shuffle_epi8(low0, first));
      sums[word].high = _mm256_add_epi8(sums[word].high, _mm256_shuffle_epi8(high0, first));
      sums[word].low = _mm256_add_epi8(sums[word].low, _mm256_shuffle_epi8(low1, second));
      sums[word].high = _mm256_add_epi8(sums[word].high, _mm256_shuffle_epi8(high1, second));
    }
  }
};

// 4 bits: four words a step, each four inputs of 8 outputs in the low halves of its bytes and of 8 in the high ones.
class Nibbles {
 public:
  static constexpr int kWords = 4;
  static constexpr int kOutputs = 64;
  static constexpr int kInputs = 4;
  static constexpr int kStepBytes = kBytes * kWords;
  static constexpr int kTable = 4;
  static constexpr const char* kName = "avx2 int16 blocks, 4-bit weights";

  static void pack(const Codes& codes, int output, int input, uint8_t* step) {
    for (int word = 0; word < kWords; ++word)
      for (int lane = 0; lane < 8; ++lane)
        for (int k = 0; k < kInputs; ++k) {
          const int low = output + 16 * word + lane;
          step[word * kBytes + 4 * lane + k] =
              static_cast<uint8_t>(codes.at(low, input + k) | codes.at(low + 8, input + k) << 4);
        }
  }

  // Inputs less 128. What that takes from the sums is given back by `Linear`: 128 times the sum of the codes.
  static void prepare(const uint8_t* x, int steps, uint8_t* tables) {
    for (int i = 0; i < steps * kInputs; ++i) tables[i] = x[i] ^ 0x80;
  }

  static void multiply(const uint8_t* weight, const uint8_t* x, int steps, int32_t* sums) {
    std::memset(sums, 0, kOutputs * sizeof(int32_t));
    for (int k = 0; k < steps; k += kNarrow)
      add_block(weight + k * kStepBytes, x + k * kInputs, std::min(kNarrow, steps - k), sums);
  }

 private:
  static constexpr int kNarrow = 8;  // steps: 8 * 2 * 15 * 128 fits int16

  static void add_block(const uint8_t* weight, const uint8_t* x, int steps, int32_t* sums) {
    __m256i narrow[kWords][2];
    for (auto& word : narrow) word[0] = word[1] = _mm256_setzero_si256();
    for (int k = 0; k < steps; ++k) {
      int32_t four;
      std::memcpy(&four, x + k * kInputs, 4);
      const __m256i input = _mm256_set1_epi32(four);
#pragma GCC unroll 4
      for (int word = 0; word < kWords; ++word) {
        const __m256i w = load(weight + k * kStepBytes + word * kBytes);
        const __m256i high = low_nibbles(_mm256_srli_epi16(w, 4));
        narrow[word][0] = _mm256_add_epi16(narrow[word][0], _mm256_maddubs_epi16(low_nibbles(w), input));
        narrow[word][1] = _mm256_add_epi16(narrow[word][1], _mm256_maddubs_epi16(high, input));
      }
    }
    for (int word = 0; word < kWords; ++word)
      for (int half = 0; half < 2; ++half)
        add_to(sums + 16 * word + 8 * half, _mm256_madd_epi16(narrow[word][half], _mm256_set1_epi16(1)));
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
    for (int k = 0; k < steps; ++k)
      for (int word = 0; word < kWords; ++word) add(weight + (k * kWords + word) * 16, x + 4 * k, total[word]);
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

template <typename Form>
class Linear final : public Op {
 public:
  explicit Linear(const Codes& codes)
      : inputs_(codes.spec.in_channels), outputs_(codes.spec.out_channels),
        steps_((inputs_ + Form::kInputs - 1) / Form::kInputs),
        panels_((outputs_ + Form::kOutputs - 1) / Form::kOutputs), levels_(codes.levels),
        requantizer_(codes.spec.folded(), outputs_, codes.spec.bound()) {
    packed_.resize(size_t(panels_) * panel_bytes());
    uint8_t* step = packed_.data();
    for (int panel = 0; panel < panels_; ++panel)
      for (int k = 0; k < steps_; ++k, step += Form::kStepBytes)
        Form::pack(codes, panel * Form::kOutputs, k * Form::kInputs, step);
    if (kSigned) {
      code_sums_.resize(size_t(panels_) * Form::kOutputs);
      for (int n = 0; n < outputs_; ++n)
        for (int k = 0; k < inputs_; ++k) code_sums_[n] += 128 * codes.at(n, k);
    }
  }

  int64_t units(const View&, int images) const override { return int64_t(images) * panels_; }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    const size_t stride = size_t(steps_) * Form::kInputs, table = size_t(steps_) * Form::kTable;
    std::vector<uint8_t> inputs(stride), tables(kRows * table);  // zeros behind the last input
    uint8_t* to[kRows];
    int32_t sums[kRows];
    const auto prepare = [&](const Row* rows, int count) {
      for (int r = 0; r < count; ++r) {
        std::memcpy(inputs.data(), rows[r].from, inputs_);
        Form::prepare(inputs.data(), steps_, tables.data() + r * table);
        to[r] = rows[r].to;
        sums[r] = std::accumulate(rows[r].from, rows[r].from + inputs_, 0);
      }
    };
    for_rows(*in, out, panels_, first, end, prepare, [&](int panel, int row, int count) {
      for (int r = row; r < row + count; ++r) finish(panel, tables.data() + r * table, to[r], sums[r]);
    });
  }

  const char* method() const override { return Form::kName; }
  int64_t packed_bytes() const override { return static_cast<int64_t>(packed_.size()); }

 private:
  static constexpr bool kSigned = std::is_same_v<Form, Nibbles>;

  size_t panel_bytes() const { return size_t(steps_) * Form::kStepBytes; }

  void finish(int panel, const uint8_t* tables, uint8_t* to, int32_t sum) const {
    alignas(32) int32_t acc[Form::kOutputs];
    Form::multiply(packed_.data() + panel * panel_bytes(), tables, steps_, acc);
    const int first = panel * Form::kOutputs, count = std::min(Form::kOutputs, outputs_ - first);
    for (int n = 0; n < Form::kOutputs; ++n) {
      const int32_t codes = acc[n] + (kSigned ? code_sums_[first + n] : 0);
      acc[n] = levels_.base * sum + levels_.step * codes;
    }
    const int code_bytes = requantizer_.wide() ? 2 : 1;
    for (int n = 0; n < count; n += 16)
      requantizer_.store(to + code_bytes * (first + n), first + n, std::min(16, count - n), load(acc + n), load(acc + n + 8));
  }

  int inputs_, outputs_, steps_, panels_;
  Levels levels_;
  avx2::Requantizer requantizer_;
  std::vector<uint8_t> packed_;
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
    case 3: return std::make_unique<Linear<Planes<3>>>(codes);
    case 4: return std::make_unique<Linear<Nibbles>>(codes);
    default: return std::make_unique<Linear<Wide>>(codes);
  }
}

}  // namespace haq
