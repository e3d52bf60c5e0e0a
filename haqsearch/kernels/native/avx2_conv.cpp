// Dense convolution, any groups: a GEMM over the pixels where they lie. See avx2_tile.h for how the sums are kept exact.
#include <algorithm>
#include <cstring>
#include <new>

#include "avx2_conv.h"
#include "avx2_epilogue.h"
#include "avx2_tile.h"

namespace haq::avx2 {
namespace {

constexpr int kPanelPixels = 54;
int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// What one run() knows of its input: how the taps of a pixel follow each other in memory.
struct Layout {
  bool direct = false;  // the tile reads the image itself; else a panel is gathered first
  int bytes = 0;        // of a window, so many lie together
  std::vector<std::ptrdiff_t> offset;  // from one such piece to the window's first byte
};

// The panel's pixels: where each one's window begins, and where its codes go.
struct Panel {
  const uint8_t* window[kPanelPixels];
  uint8_t* target[kPanelPixels];
  const uint8_t* gathered[kPanelPixels];  // a copy of the window, where the tile needs one
  int count = 0;
};

// Sixteen output channels of one group, packed.
struct Block {
  int group = 0, channel = 0, count = 0;  // channel: the first one, in the output
  Kind kind = Kind::kWide;
  const int8_t* weights = nullptr;
  Blocks sums;                  // of int16; not kWide and kPairs
  alignas(32) int32_t start[kTileChannels] = {};
};

// Tiles of a panel that one call computes, of the same block.
struct Tiles {
  const uint8_t* const* pixels;
  uint8_t* const* targets;
  std::ptrdiff_t from, to;  // bytes to the group's inputs, to the block's output
  const Run *run, *end;
  const Block* block;
  const Requantizer* requantizer;
  int constants, count;  // index of the block's constants; channels to write
  int tiles;
};

template <Kind kind, int Pixels, int Halves>
void compute(const Tiles& t) {
  Factors factors{t.pixels, t.from, t.run, t.end, t.block->weights, t.block->start, t.block->sums.start.data()};
  uint8_t* const* targets = t.targets;
  for (int i = 0; i < t.tiles; ++i, factors.pixels += Pixels, targets += Pixels) {
    __m256i acc[Pixels][Halves];
    if constexpr (kind == Kind::kTwos) accumulate_twos<Pixels, Halves>(factors, acc);
    else accumulate<kind, Pixels, Halves>(factors, acc);
    t.requantizer->store_tile<Pixels, Halves>(targets, t.to, t.constants, t.count, acc);
  }
}

using Compute = void (*)(const Tiles&);

template <Kind kind, int Halves>
Compute compute_for(int pixels) {
  static constexpr Compute table[kTilePixels] = {compute<kind, 1, Halves>, compute<kind, 2, Halves>,
                                                 compute<kind, 3, Halves>, compute<kind, 4, Halves>,
                                                 compute<kind, 5, Halves>, compute<kind, 6, Halves>};
  return table[pixels - 1];
}

template <Kind kind>
Compute compute_for(int pixels, int channels) {
  return channels > 8 ? compute_for<kind, 2>(pixels) : compute_for<kind, 1>(pixels);
}

Compute compute_for(Kind kind, int pixels, int channels) {
  switch (kind) {
    case Kind::kWide: return compute_for<Kind::kWide>(pixels, channels);
    case Kind::kPairs: return compute_for<Kind::kPairs>(pixels, channels);
    case Kind::kTwos: return compute_for<Kind::kTwos>(pixels, channels);
    case Kind::kBlocks: return compute_for<Kind::kBlocks>(pixels, channels);
    default: return compute_for<Kind::kWhole>(pixels, channels);
  }
}

class Conv final : public Op {
 public:
  explicit Conv(const ConvSpec& spec) : s_(spec) {
    s_.weight.clear();  // the packed ones are kept
    cut_window();
    Weights codes(spec, stretch_, padded_);
    if (!pairs_fit(codes.code.data(), static_cast<int64_t>(codes.code.size()), s_.input_high)) {
      wide_ = true;
      gather_whole_windows();
      codes = Weights(spec, stretch_, padded_);
    }
    steps_ = stretches_ * padded_ / per_step();
    pack(codes);
    requantizer_ = std::make_unique<Requantizer>(by_block(spec.folded()), static_cast<int>(blocks_.size()) * kTileChannels,
                                                 spec.bound());
    for (size_t b = 0; b < blocks_.size(); ++b)
      for (int n = 0; n < kTileChannels; ++n)
        blocks_[b].start[n] = requantizer_->start(static_cast<int>(b) * kTileChannels)[n] - blocks_[b].sums.started(n);
  }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    const Layout layout = lay_out(*in);
    Runs runs;
    for (const Block& block : blocks_) add_runs(block, layout, runs);
    Panel panel;
    const int64_t pixels = (end - first) * out.width;
    for (int64_t done = 0; done < pixels; done += panel.count) {
      panel.count = share(pixels - done, kPanelPixels, kTilePixels);
      locate(*in, out, first * out.width + done, panel);
      multiply(panel, layout, runs);
    }
  }

  // Mean number of steps between widenings: 1 for pairs, 0 for int16 operands.
  double steps_a_block() const {
    double widenings = 0;
    for (const Block& block : blocks_)
      widenings += block.kind == Kind::kPairs ? steps_ : static_cast<double>(block.sums.steps.size());
    return wide_ ? 0 : steps_ * static_cast<double>(blocks_.size()) / widenings;
  }

  const char* method() const override {
    static const char* names[] = {"avx2 int16", "avx2 int8 pairs", "avx2 int8 twos", "avx2 int8 blocks", "avx2 int8 whole"};
    Kind worst = Kind::kWhole;
    for (const Block& block : blocks_) worst = std::min(worst, block.kind);
    return names[static_cast<int>(worst)];
  }

  int64_t packed_bytes() const override { return static_cast<int64_t>(blocks_.size()) * steps_ * kStepBytes; }

 private:
  // The weights in the order a window lies in memory: (out, kh, kw, in), each stretch of `length` codes padded to `padded`.
  struct Weights {
    Weights(const ConvSpec& s, int length, int padded) {
      const int inputs = s.group_inputs(), taps = s.kernel_h * s.kernel_w;
      row = inputs * taps / length * padded;
      code.resize(size_t(s.out_channels) * row);
      for (int n = 0; n < s.out_channels; ++n)
        for (int c = 0; c < inputs; ++c)
          for (int t = 0; t < taps; ++t) {
            const int k = t * inputs + c;
            code[size_t(n) * row + k / length * padded + k % length] = s.weight[(size_t(n) * inputs + c) * taps + t];
          }
    }

    const int8_t* at(int n, int k) const { return code.data() + size_t(n) * row + k; }

    int row;
    std::vector<int8_t> code;
  };

  int per_step() const { return wide_ ? 2 : 4; }

  // The tile reads stretches of codes that lie together: rows of the window, or its taps. Their ends are padded to whole
  // steps with weights of zero; where those steps cost more than copying, the windows are gathered.
  void cut_window() {
    const int inputs = s_.group_inputs(), depth = inputs * s_.kernel_h * s_.kernel_w;
    stretch_ = s_.dilation_w == 1 && s_.groups == 1 ? inputs * s_.kernel_w : inputs;
    stretches_ = depth / stretch_;
    padded_ = static_cast<int>(round_up(stretch_, 4));
    const int64_t waste = (stretches_ * padded_ - round_up(depth, 4)) / 4 * (round_up(s_.out_channels, 16) / 16);
    if (waste > stretches_ * (round_up(stretch_, 16) / 16)) gather_whole_windows();
  }

  void gather_whole_windows() {
    stretch_ = s_.group_inputs() * s_.kernel_h * s_.kernel_w;
    stretches_ = 1;
    padded_ = static_cast<int>(round_up(stretch_, per_step()));
  }

  void pack(const Weights& codes) {
    const int outputs = s_.out_channels / s_.groups;
    for (int group = 0; group < s_.groups; ++group)
      for (int channel = 0; channel < outputs; channel += kTileChannels)
        blocks_.push_back({group, group * outputs + channel, std::min(kTileChannels, outputs - channel), Kind::kWide,
                           nullptr, {}});
    packed_.reset(static_cast<int8_t*>(::operator new(packed_bytes(), std::align_val_t(64))));
    int8_t* to = packed_.get();
    for (Block& block : blocks_) {
      block.weights = to;
      for (int step = 0; step < steps_; ++step)
        for (int n = 0; n < kTileChannels; ++n, to += 4) {
          const bool inside = n < block.count;
          int8_t four[4] = {};
          if (inside) std::memcpy(four, codes.at(block.channel + n, step * per_step()), per_step());
          if (wide_) {
            const int16_t two[2] = {four[0], four[1]};
            std::memcpy(to, two, 4);
          } else {
            std::memcpy(to, four, 4);
          }
        }
      if (!wide_) choose(block);
    }
  }

  void choose(Block& block) {
    block.sums = cut_blocks(block.weights, steps_, s_.input_high);
    const size_t blocks = block.sums.steps.size();
    if (blocks == 1) block.kind = Kind::kWhole;
    else if (3 * blocks <= size_t(steps_)) block.kind = Kind::kBlocks;
    else if (stretch_steps() % 2 == 0 && take_twos(block)) block.kind = Kind::kTwos;
    else if (2 * blocks <= size_t(steps_)) block.kind = Kind::kBlocks;
    else block.kind = Kind::kPairs, block.sums = {};
  }

  bool take_twos(Block& block) const {
    Blocks twos = cut_blocks(block.weights, steps_, s_.input_high, 2);
    if (std::any_of(twos.steps.begin(), twos.steps.end(), [](int steps) { return steps != 2; })) return false;
    block.sums = std::move(twos);
    return true;
  }

  // Steps that read codes which lie together.
  int stretch_steps() const { return padded_ / per_step(); }

  // The epilogue's constants as the blocks lie: sixteen each.
  Epilogue by_block(const Epilogue& plain) const {
    Epilogue e = plain;
    e.multiplier.assign(blocks_.size() * kTileChannels, 0);
    e.offset.assign(e.multiplier.size(), 0);
    e.shift.assign(e.multiplier.size(), 32);
    for (size_t b = 0; b < blocks_.size(); ++b)
      for (int n = 0; n < blocks_[b].count; ++n) {
        e.multiplier[b * kTileChannels + n] = plain.multiplier[blocks_[b].channel + n];
        e.offset[b * kTileChannels + n] = plain.offset[blocks_[b].channel + n];
        e.shift[b * kTileChannels + n] = plain.shift[blocks_[b].channel + n];
      }
    return e;
  }

  Layout lay_out(const View& in) const {
    Layout layout;
    const int inputs = s_.group_inputs();
    const bool rows = s_.dilation_w == 1 && in.pixel == inputs;  // a row of the window lies together
    const int taps = rows ? 1 : s_.kernel_w;
    layout.bytes = rows ? inputs * s_.kernel_w : inputs;
    layout.direct = !wide_ && layout.bytes == stretch_;
    for (int ky = 0; ky < s_.kernel_h; ++ky)
      for (int kx = 0; kx < taps; ++kx)
        layout.offset.push_back(ky * s_.dilation_h * in.row + kx * s_.dilation_w * in.pixel);
    return layout;
  }

  // Of a gathered window: codes are copied sixteen at a time, the last ones running over.
  int gathered_bytes() const { return static_cast<int>(round_up(stretches_ * padded_ + 16, 16)) * (wide_ ? 2 : 1); }

  // The runs of all blocks; first[b] .. first[b + 1] are those of block b.
  struct Runs {
    std::vector<Run> run;
    std::vector<size_t> first = {0};
  };

  // The steps of a block, cut where a stretch of the window or a block of sums ends.
  void add_runs(const Block& block, const Layout& layout, Runs& runs) const {
    const int stretch = layout.direct ? padded_ / 4 : steps_;
    size_t next = 0;
    int left = block.kind == Kind::kBlocks ? block.sums.steps[0] : steps_;
    for (int done = 0, within = 0; done < steps_;) {
      const int steps = std::min(left, stretch - within);
      const std::ptrdiff_t start = layout.direct ? layout.offset[done / stretch] : 0;
      runs.run.push_back({start + 4 * within, steps, steps == left});
      done += steps, left -= steps;
      within = within + steps == stretch ? 0 : within + steps;
      if (left == 0 && done < steps_) left = block.sums.steps[++next];
    }
    runs.first.push_back(runs.run.size());
  }

  void locate(const View& in, const View& out, int64_t first, Panel& panel) const {
    int x = static_cast<int>(first % out.width), y = static_cast<int>(first / out.width % out.height);
    int64_t image = first / out.width / out.height;
    const std::ptrdiff_t step = s_.stride_w * in.pixel;
    for (int i = 0; i < panel.count; x = 0) {
      const uint8_t* window = in.at(image, y * s_.stride_h - s_.pad_h, x * s_.stride_w - s_.pad_w);
      uint8_t* target = out.at(image, y, x);
      for (const int stop = std::min(panel.count, i + out.width - x); i < stop; ++i, window += step, target += out.pixel)
        panel.window[i] = window, panel.target[i] = target;
      if (++y == out.height) y = 0, ++image;
    }
  }

  // Copies the windows of one group into rows of their own, as int16 where the tile wants that.
  void gather(const Layout& layout, int group, Panel& panel) const {
    thread_local std::vector<uint8_t> memory;
    const size_t row = static_cast<size_t>(gathered_bytes());
    if (memory.size() < row * kPanelPixels) memory.resize(row * kPanelPixels);
    for (int i = 0; i < panel.count; ++i) panel.gathered[i] = memory.data() + i * row;
    const int code_bytes = wide_ ? 2 : 1;
    int done = 0;  // codes of the window
    for (const std::ptrdiff_t offset : layout.offset) {
      uint8_t* const to = memory.data() + (done / stretch_ * padded_ + done % stretch_) * code_bytes;
      for (int k = 0; k < layout.bytes; k += 16) {  // what runs over is overwritten by the next stretch
        const std::ptrdiff_t from = group * s_.group_inputs() + offset + k;
        if (wide_) copy_sixteen<true>(panel, from, to + 2 * k, row);
        else copy_sixteen<false>(panel, from, to + k, row);
      }
      done += layout.bytes;
    }
  }

  template <bool wide>
  static void copy_sixteen(const Panel& panel, std::ptrdiff_t from, uint8_t* to, size_t row) {
    for (int i = 0; i < panel.count; ++i, to += row) {
      const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(panel.window[i] + from));
      if (wide) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepu8_epi16(codes));
      else _mm_storeu_si128(reinterpret_cast<__m128i*>(to), codes);
    }
  }

  void multiply(Panel& panel, const Layout& layout, const Runs& runs) const {
    int gathered = -1;
    for (size_t b = 0; b < blocks_.size(); ++b) {
      const Block& block = blocks_[b];
      if (!layout.direct && gathered != block.group) gather(layout, gathered = block.group, panel);
      Tiles tiles;
      tiles.from = layout.direct ? block.group * s_.group_inputs() : 0;
      tiles.to = std::ptrdiff_t(block.channel) * (requantizer_->wide() ? 2 : 1);
      tiles.run = runs.run.data() + runs.first[b], tiles.end = runs.run.data() + runs.first[b + 1];
      tiles.block = &block;
      tiles.requantizer = requantizer_.get();
      tiles.constants = static_cast<int>(b) * kTileChannels, tiles.count = block.count;
      const int most = block.kind == Kind::kTwos ? kTwosPixels : kTilePixels;
      for (int done = 0, each; done < panel.count; done += tiles.tiles * each) {  // tiles of two sizes, one less than the other
        const int left = panel.count - done, parts = (left + most - 1) / most;
        each = (left + parts - 1) / parts;
        tiles.tiles = left % parts ? left % parts : parts;
        tiles.pixels = (layout.direct ? panel.window : panel.gathered) + done, tiles.targets = panel.target + done;
        compute_for(block.kind, each, block.count)(tiles);
      }
    }
  }

  struct Free {
    void operator()(int8_t* p) const { ::operator delete(p, std::align_val_t(64)); }
  };

  ConvSpec s_;
  bool wide_ = false;  // int16 operands
  int stretch_ = 0, padded_ = 0, stretches_ = 0;  // codes that lie together, with padding, and how often
  int steps_ = 0;
  std::vector<Block> blocks_;
  std::unique_ptr<int8_t, Free> packed_;
  std::unique_ptr<Requantizer> requantizer_;
};

}  // namespace

OpPointer make_conv(const ConvSpec& spec) {
  auto direct = std::make_unique<Conv>(spec);
  if (OpPointer winograd = make_winograd(spec, direct->steps_a_block())) return winograd;
  return direct;
}

}  // namespace haq::avx2
