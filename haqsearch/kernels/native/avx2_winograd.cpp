// 3 x 3 convolution by Winograd's minimal filtering in integers, a tile of outputs at a time.
// Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016, section 4.1:
//   Y = A' [(G g G') * (B' d B)] A,  summed over the input channels before A is applied.
//
// Transformed codes and weights lie in int16 (see avx2_winograd.h), or with few bits in bytes. Sums are taken modulo
// 2^32, where additions in any order agree; the result is right since |acc| * 2^doublings < 2^31 is asked for.
//
// Products that count alike in A' [] A, a class of rows and columns, are summed together: a cell.
#include <algorithm>
#include <new>

#include "avx2_conv.h"
#include "avx2_epilogue.h"
#include "avx2_tile.h"
#include "avx2_winograd.h"

namespace haq::avx2 {
namespace {

constexpr int64_t kCacheBytes = 512 * 1024, kNearBytes = 2 * 1024 * 1024;

// Walks over the tiles of all images, row by row.
struct Place {
  Place(int64_t index, int down, int across)
      : x(static_cast<int>(index % across)),
        y(static_cast<int>(index / across % down)),
        image(index / across / down),
        down(down),
        across(across) {}

  void next() {
    if (++x < across) return;
    x = 0;
    if (++y == down) y = 0, ++image;
  }

  int x, y;
  int64_t image;
  int down, across;
};

template <typename Algorithm, typename Lanes>
class Winograd final : public Op {
 public:
  explicit Winograd(const ConvSpec& spec)
      : pad_h_(spec.pad_h),
        pad_w_(spec.pad_w),
        outputs_(spec.out_channels),
        blocks_((spec.out_channels + kTileChannels - 1) / kTileChannels),
        depth_((spec.in_channels + 15) / 16 * 16),
        raise_(kBytes ? 2 * spec.input_high : 0),
        requantizer_(spec.folded(), spec.out_channels, spec.bound(), Algorithm::kDoublings) {
    usable_ = requantizer_.vector() && 2 * raise_ <= 255;
    packed_.reset(static_cast<Weight*>(::operator new(packed_bytes(), std::align_val_t(64))));
    std::fill_n(packed_.get(), packed_bytes() / sizeof(Weight), Weight(0));
    start_.resize(size_t(blocks_) * kCells * kTileChannels);
    for (int n = 0; n < spec.out_channels; ++n)
      for (int c = 0; c < spec.in_channels; ++c) pack(spec.weight.data() + (size_t(n) * spec.in_channels + c) * 9, n, c);
    if (kBytes && usable_) cut_runs();
    if (usable_) add_bias();
  }

  // Whether the operands fit, and the epilogue is done in vectors.
  bool usable() const { return usable_; }

  // Rows of tiles.
  int64_t units(const View& out, int images) const override { return int64_t(images) * tiles_of(out.height); }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    thread_local std::vector<uint8_t> memory;
    thread_local std::vector<uint8_t> beyond;
    const size_t tile = size_t(kPositions) * depth_ * kCodeBytes + 64;  // 64: tiles do not fall on the same cache sets
    if (memory.size() < tile * kPanelTiles) memory.resize(tile * kPanelTiles);
    if (beyond.size() < size_t(blocks_) * kTileChannels * 2) beyond.resize(size_t(blocks_) * kTileChannels * 2);
    const Offsets rows(out.height, in->row), columns(out.width, in->pixel);
    const int across = tiles_of(out.width);
    Place place(first * across, tiles_of(out.height), across);
    Panel panel;
    for (int64_t left = (end - first) * across; left > 0; left -= panel.count) {
      panel.resize(share(left, kPanelTiles, kTilePixels));
      for (int i = 0; i < panel.count; ++i, place.next()) {
        uint8_t* const to = memory.data() + i * tile;
        panel.transformed[i] = to;
        aim(out, place, beyond.data(), panel.target[i]);
        transform(in->at(place.image, kApart * place.y - pad_h_, kApart * place.x - pad_w_),
                  rows.of(place.y), columns.of(place.x), to);
      }
      for (int block = 0; block < blocks_; ++block) multiply(panel, block);
    }
  }

  const char* method() const override { return kBytes ? "avx2 winograd int8" : "avx2 winograd"; }
  int64_t packed_bytes() const override { return int64_t(blocks_) * block_codes() * static_cast<int>(sizeof(Weight)); }

 private:
  static constexpr int kTile = Algorithm::kTile, kPositions = kTile * kTile;
  static constexpr int kPanelTiles = Algorithm::kStride == 1 ? 12 : 26;  // transformed at a time
  static constexpr int kOutputs = Algorithm::kOutputs, kPixels = kOutputs * kOutputs;
  static constexpr int kApart = Algorithm::kStride * kOutputs;  // two tiles, in input pixels
  static constexpr int kCodeBytes = Lanes::kCodeBytes, kPerStep = 4 / kCodeBytes;
  static constexpr int kVector = 32 / kCodeBytes;  // channels of a register
  static constexpr bool kBytes = kCodeBytes == 1;
  static constexpr Order<Algorithm> kOrder{};
  static constexpr int kClasses = Algorithm::kClasses, kCells = kClasses * kClasses;
  static constexpr int kUndo = static_cast<int>(inverse(Algorithm::kTimes));
  static constexpr int kMiddle = Order<Algorithm>::cell_of(kTile + 1);  // counts once in every output
  using Weight = typename Lanes::Weight;

  struct Panel {
    const uint8_t* transformed[kPanelTiles];
    uint8_t* target[kPanelTiles][kPixels];  // output pixels; beyond the image: a place nobody reads
    int count = 0;
    int groups = 0, first[kPanelTiles];  // of tiles in registers together: the first of each, and the end

    void resize(int tiles) {
      if (count == tiles) return;
      count = tiles, groups = 0;
      for (int i = 0; i < tiles; i += share(tiles - i, kTilePixels)) first[groups++] = i;
      first[groups] = tiles;
    }
  };

  static constexpr int tiles_of(int outputs) { return (outputs + kOutputs - 1) / kOutputs; }

  int64_t block_codes() const { return int64_t(kPositions) * depth_ * kTileChannels; }

  // packed_: [block][place][step][16 outputs][2 or 4 inputs]
  void pack(const int8_t* weight, int n, int c) {
    int rows[3][kTile], u[kTile][kTile];
    for (int y = 0; y < 3; ++y) {
      const int g[3] = {weight[3 * y], weight[3 * y + 1], weight[3 * y + 2]};
      Algorithm::weights(g, rows[y]);
    }
    for (int x = 0; x < kTile; ++x) {
      const int g[3] = {rows[0][x], rows[1][x], rows[2][x]};
      int column[kTile];
      Algorithm::weights(g, column);
      for (int y = 0; y < kTile; ++y) u[y][x] = column[y];
    }
    Weight* to = packed_.get() + n / kTileChannels * block_codes();
    for (int position = 0; position < kPositions; ++position) {
      const int weight_here = u[position / kTile][position % kTile];
      usable_ = usable_ && weight_here == static_cast<Weight>(weight_here);
      const int step = (kOrder.place[position] * depth_ + c) / kPerStep;
      to[(step * kTileChannels + n % kTileChannels) * kPerStep + c % kPerStep] = static_cast<Weight>(weight_here);
      const size_t cell = size_t(n / kTileChannels) * kCells + kOrder.cell_of(position);
      if (!Algorithm::signed_at(position)) continue;
      start_[cell * kTileChannels + n % kTileChannels] -= static_cast<uint32_t>(raise_ * weight_here);
    }
  }

  // Blocks of int16 sums for every block of channels and cell; not worth it where they are short.
  void cut_runs() {
    usable_ = pairs_fit(reinterpret_cast<const int8_t*>(packed_.get()), packed_bytes(), 2 * raise_);
    for (int i = 0; usable_ && i < blocks_ * kCells; ++i) {
      const Blocks cut = cut_blocks(weights(i / kCells, i % kCells), steps(i % kCells), 2 * raise_);
      std::ptrdiff_t offset = 0;
      for (int steps : cut.steps) runs_.push_back({offset, steps, true}), offset += 4 * steps;
      first_run_.push_back(static_cast<int>(runs_.size()));
      run_start_.insert(run_start_.end(), cut.start.begin(), cut.start.end());
      for (int n = 0; n < kTileChannels; ++n) start_[size_t(i) * kTileChannels + n] -= cut.started(n);
    }
    usable_ = usable_ && runs_.size() * 3 * kPerStep <= size_t(blocks_) * kPositions * depth_;
  }

  // The bias, where the sums of one cell start.
  void add_bias() {
    for (int block = 0; block < blocks_; ++block)
      for (int n = 0; n < kTileChannels; ++n)
        start_[(size_t(block) * kCells + kMiddle) * kTileChannels + n] +=
            uint32_t(Algorithm::kTimes) * static_cast<uint32_t>(requantizer_.start(block * kTileChannels)[n]);
  }

  // Bytes from a tile's first row (or column) to each of them. Those that only outputs beyond the image would need are
  // replaced by the last one there is.
  struct Offsets {
    Offsets(int outputs, std::ptrdiff_t stride) : last(tiles_of(outputs) - 1) {
      for (int k = 0; k < kTile; ++k) {
        inner[k] = k * stride;
        outer[k] = std::min(k, Algorithm::kStride * (outputs - 1 - kOutputs * last) + 2) * stride;
      }
    }

    const std::ptrdiff_t* of(int tile) const { return tile == last ? outer : inner; }

    int last;
    std::ptrdiff_t inner[kTile], outer[kTile];
  };

  static void aim(const View& out, const Place& place, uint8_t* beyond, uint8_t** target) {
    const int y = kOutputs * place.y, x = kOutputs * place.x;
    uint8_t* row = out.at(place.image, y, x);
#pragma GCC unroll 4
    for (int i = 0; i < kOutputs; ++i, row += out.row)
#pragma GCC unroll 4
      for (int k = 0; k < kOutputs; ++k)
        *target++ = y + i < out.height && x + k < out.width ? row + k * out.pixel : beyond;
  }

  // Channels beyond the input's are whatever lies there: their weights are zero.
  void transform(const uint8_t* from, const std::ptrdiff_t* rows, const std::ptrdiff_t* columns, uint8_t* to) const {
    int c = 0;
    for (; c + kVector <= depth_; c += kVector) transform<kVector>(from + c, rows, columns, to + c * kCodeBytes);
    if (c < depth_) transform<16>(from + c, rows, columns, to + c * kCodeBytes);
  }

  // Channels of a register, or 16 at the end.
  template <int Channels>
  inline __attribute__((always_inline)) void put(uint8_t* to, int position, __m256i v) const {
    if (kBytes && Algorithm::signed_at(position)) v = Lanes::add(v, _mm256_set1_epi8(static_cast<char>(raise_)));
    uint8_t* const place = to + kOrder.place[position] * (std::ptrdiff_t(depth_) * kCodeBytes);
    if (Channels == kVector) _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), v);
    else _mm_storeu_si128(reinterpret_cast<__m128i*>(place), _mm256_castsi256_si128(v));
  }

  template <int Channels>
  inline __attribute__((always_inline)) void transform(const uint8_t* from, const std::ptrdiff_t* rows,
                                                       const std::ptrdiff_t* columns, uint8_t* to) const {
    if constexpr (kOutputs == 2) transform_rows<Channels>(from, rows, columns, to);
    else transform_columns<Channels>(from, rows, columns, to);
  }

  // Rows first, one transformed row at a time: all of them would not fit the registers.
  template <int Channels>
  inline __attribute__((always_inline)) void transform_rows(const uint8_t* from, const std::ptrdiff_t* rows,
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

  // Columns first, a row at a time; then the rows of even inputs, a column at a time.
  template <int Channels>
  void transform_columns(const uint8_t* from, const std::ptrdiff_t* rows, const std::ptrdiff_t* columns, uint8_t* to) const {
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

  void multiply(const Panel& panel, int block) const {
    alignas(32) int32_t sums[kPanelTiles][kCells][kTileChannels];
    for (int cell = 0; cell < kCells; ++cell) {
      const Run whole{0, steps(cell), true};
      Factors factors = factors_of(block, cell, whole);
      for (int group = 0; group < panel.groups; ++group) {
        const int i = panel.first[group], end = panel.first[group + 1];
        fetch(weights(block, cell), weights(block, cell + 1), i, end, panel.count);
        factors.pixels = panel.transformed + i;
        int32_t* const to = sums[i][cell];
        switch (end - i) {
          case 1: tiles<1>(factors, to); break;
          case 2: tiles<2>(factors, to); break;
          case 3: tiles<3>(factors, to); break;
          case 4: tiles<4>(factors, to); break;
          case 5: tiles<5>(factors, to); break;
          default: tiles<6>(factors, to);
        }
      }
    }
    for (int i = 0; i < panel.count; ++i) finish(panel.target[i], block, sums[i]);
  }

  // Steps of a cell, and its weights; those of the cell behind a block's last are the next block's.
  int steps(int cell) const { return (kOrder.first[cell + 1] - kOrder.first[cell]) * depth_ / kPerStep; }
  const int8_t* weights(int block, int cell) const {
    const Weight* const begin = packed_.get() + block * block_codes();
    return reinterpret_cast<const int8_t*>(begin + std::ptrdiff_t(kOrder.first[cell]) * depth_ * kTileChannels);
  }

  // Asks for as many weights as these tiles work on, from `next` on: large layers read them from beyond the cache.
  void fetch(const int8_t* here, const int8_t* next, int first, int last, int tiles) const {
    const int8_t* const end = reinterpret_cast<const int8_t*>(packed_.get()) + packed_bytes();
    if (packed_bytes() <= kCacheBytes) return;
    const std::ptrdiff_t bytes = next - here;
    const int8_t* const stop = std::min(end, next + bytes * last / tiles);
    for (next += bytes * first / tiles; next < stop; next += 64)
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
  }

  // What the tiles of a panel are multiplied by for one cell and block. whole: the run of one that is not cut.
  Factors factors_of(int block, int cell, const Run& whole) const {
    const size_t i = size_t(block) * kCells + cell;
    Factors factors{};
    factors.from = std::ptrdiff_t(kOrder.first[cell]) * depth_ * kCodeBytes;
    factors.run = kBytes ? runs_.data() + first_run_[i] : &whole;
    factors.end = kBytes ? runs_.data() + first_run_[i + 1] : &whole + 1;
    factors.weights = weights(block, cell);
    factors.start = reinterpret_cast<const int32_t*>(&start_[i * kTileChannels]);
    factors.blocks_start = kBytes ? &run_start_[size_t(first_run_[i]) * kStartLanes] : nullptr;
    return factors;
  }

  template <int Tiles>
  static void tiles(const Factors& factors, int32_t* sums) {
    if constexpr (!kBytes) tiles<Kind::kWide, Tiles>(factors, sums);
    else if (factors.end - factors.run == 1) tiles<Kind::kWhole, Tiles>(factors, sums);
    else tiles<Kind::kBlocks, Tiles>(factors, sums);
  }

  template <Kind kind, int Tiles>
  static void tiles(const Factors& factors, int32_t* sums) {
    asm volatile("" : "+r"(sums));  // gcc would share addresses among the numbers of tiles, and has no registers for them
    __m256i acc[Tiles][2];
    accumulate<kind, Tiles, 2>(factors, acc);
#pragma GCC unroll 6
    for (int i = 0; i < Tiles; ++i)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) store(sums + i * kCells * kTileChannels + 8 * h, acc[i][h]);
  }

  static void transform_output(const int32_t (&sums)[kCells][kTileChannels], __m256i (&acc)[kPixels][2]) {
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

  void finish(uint8_t* const* targets, int block, const int32_t (&sums)[kCells][kTileChannels]) const {
    __m256i acc[kPixels][2];
    transform_output(sums, acc);
    const int channel = block * kTileChannels, count = std::min(kTileChannels, outputs_ - channel);
    const std::ptrdiff_t to = std::ptrdiff_t(channel) * (requantizer_.wide() ? 2 : 1);
    if constexpr (kPixels == 4) requantizer_.store_tile<4, 2>(targets, to, channel, count, acc);
    else
#pragma GCC unroll 1
      for (int k = 0; k < kPixels; k += 4) {
        __m256i four[4][2];
        std::memcpy(four, acc + k, sizeof four);
        requantizer_.store_tile<4, 2>(targets + k, to, channel, count, four);
      }
  }

  struct Free {
    void operator()(Weight* p) const { ::operator delete(p, std::align_val_t(64)); }
  };

  int pad_h_, pad_w_, outputs_, blocks_, depth_;
  int raise_;  // added to transformed codes that may be negative
  bool usable_ = false;
  Requantizer requantizer_;
  std::unique_ptr<Weight, Free> packed_;
  std::vector<uint32_t> start_;  // of each cell's sums, modulo 2^32: less what raised codes and blocks of sums add
  std::vector<Run> runs_;
  std::vector<int16_t> run_start_;
  std::vector<int> first_run_ = {0};
};

template <typename Algorithm, typename Lanes>
OpPointer make(const ConvSpec& spec) {
  if (spec.bound() > INT32_MAX >> Algorithm::kDoublings) return nullptr;
  auto op = std::make_unique<Winograd<Algorithm, Lanes>>(spec);
  return op->usable() ? std::move(op) : nullptr;
}

template <typename Lanes>
OpPointer make(const ConvSpec& spec) {
  if (spec.stride_h == 1) return make<StrideOne, Lanes>(spec);
  return make<StrideTwo, Lanes>(spec);
}

OpPointer near(OpPointer op, int64_t bytes) { return op && op->packed_bytes() <= bytes ? std::move(op) : nullptr; }

// Whether tiles of four by four outputs take fewer multiplications than those of two by two, by a tenth at least: not where
// many of their outputs lie beyond the image.
bool fours_pay(const ConvSpec& s) {
  const auto positions = [&](int outputs, int tile) {
    const auto tiles = [&](int size) { return (size + outputs - 1) / outputs; };
    return int64_t(tiles(s.out_height())) * tiles(s.out_width()) * tile * tile;
  };
  return 10 * positions(StrideTwoFour::kOutputs, StrideTwoFour::kTile) <= 9 * positions(StrideTwo::kOutputs, StrideTwo::kTile);
}

}  // namespace

OpPointer make_winograd(const ConvSpec& s, double steps_a_block) {
  const bool fits = s.kernel_h == 3 && s.kernel_w == 3 && s.stride_h == s.stride_w && s.stride_h <= 2 &&
                    s.dilation_h == 1 && s.dilation_w == 1 && s.groups == 1;
  // Few channels: the transforms cost more than they save.
  if (!fits || s.in_channels < 12 || s.out_channels < 12) return nullptr;
  if (steps_a_block > 8 && s.in_channels < 32) return nullptr;
  if (s.weight_bits <= 6 && s.input_high < 64)
    if (OpPointer op = make<Bytes>(s)) return op;
  // The saving is smaller for stride 2, and where direct int8 sums go on for many steps. It is lost where the weights, more
  // than twice the direct ones, do not stay near.
  if (s.stride_h == 2) {
    if (steps_a_block > 2.5) return nullptr;
    if (fours_pay(s))
      if (OpPointer op = near(make<StrideTwoFour, Words>(s), kNearBytes)) return op;
    return near(make<StrideTwo, Words>(s), kNearBytes);
  }
  return near(make<Words>(s), steps_a_block > 4 ? 2 * kNearBytes : INT64_MAX);
}

}  // namespace haq::avx2
