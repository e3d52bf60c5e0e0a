#include "executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "threads.h"

namespace haq {
namespace {

class Copy final : public Op {
 public:
  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    for (int64_t unit = first; unit < end; ++unit)
      for (int x = 0, y = static_cast<int>(unit % out.height); x < out.width; ++x)
        std::memcpy(out.at(unit / out.height, y, x), in->at(unit / out.height, y, x), out.channels);
  }
  const char* method() const override { return "copy"; }
};

class Flatten final : public Op {
 public:
  int64_t units(const View&, int images) const override { return images; }
  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    for (int64_t image = first; image < end; ++image) {
      uint8_t* to = out.at(image, 0, 0);
      for (int c = 0; c < in->channels; ++c)
        for (int y = 0; y < in->height; ++y)
          for (int x = 0; x < in->width; ++x) *to++ = in->at(image, y, x)[c];
    }
  }
  const char* method() const override { return "copy"; }
};

uint8_t* align(uint8_t* p) { return p + (-reinterpret_cast<std::uintptr_t>(p) & 63); }

// Sets the border of the rows [first, end) of the images, the whole rows above and below with the outermost ones.
void fill_border(const Tensor& t, const View& v, int64_t first, int64_t end) {
  if (!(t.top | t.left | t.bottom | t.right)) return;
  const int64_t before = t.left * v.pixel, after = t.right * v.pixel, row = before + t.width * v.pixel + after;
  for (int64_t unit = first; unit < end; ++unit) {
    const int y = static_cast<int>(unit % t.height);
    uint8_t* start = v.at(unit / t.height, y, 0);
    std::memset(start - before, t.fill, before);
    std::memset(start + t.width * v.pixel, t.fill, after);
    if (y == 0)
      for (int i = 1; i <= t.top; ++i) std::memset(start - before - i * v.row, t.fill, row);
    if (y == t.height - 1)
      for (int i = 1; i <= t.bottom; ++i) std::memset(start - before + i * v.row, t.fill, row);
  }
}

// Plain C++ that compilers turn into vectors. The clamp comes first, which is the same (its limits are integers) and
// leaves small numbers: adding 1.5 * 2^23 rounds those half to even, and has the integer in its low bits.
void quantize(const Import& from, const float* real, int64_t count, uint8_t* codes) {
  const float low = static_cast<float>(from.low - from.zero_point);
  const float high = static_cast<float>(from.high - from.zero_point);
  const float scale = from.scale;
  const int32_t offset = from.zero_point + from.bias;
  for (int64_t i = 0; i < count; ++i) {
    float steps = real[i] / scale;
    steps = steps > low ? steps : low;
    steps = (steps < high ? steps : high) + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &steps, 4);
    codes[i] = static_cast<uint8_t>(bits + offset);
  }
}

// `count` numbers of a source, from number `at` on, as codes.
void translate(const Import& from, const void* source, int64_t at, int64_t count, uint8_t* codes) {
  if (!from.codes) return quantize(from, static_cast<const float*>(source) + at, count, codes);
  const uint8_t* bytes = static_cast<const uint8_t*>(source) + at;
  for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(bytes[i] + from.bias);
}

}  // namespace

OpPointer make_copy() { return std::make_unique<Copy>(); }
OpPointer make_flatten() { return std::make_unique<Flatten>(); }

// One chunk of images on its way through the steps, by one thread or several.
struct Executor::Pass {
  const Executor& e;
  uint8_t* arena;
  int64_t chunk;   // the arena is laid out for so many images
  int64_t start;   // first image of the batch
  int images;      // images of this pass
  int worker = 0, workers = 1;
  Barrier* barrier = nullptr;
  static constexpr int kPixels = 64;  // of one channel, translated before they are spread over the pixels

  View view(const Box& box) const {
    const Tensor& t = e.tensors[box.tensor];
    View v;
    v.pixel = int64_t(t.channels) * t.bytes;
    v.row = v.pixel * (t.width + t.left + t.right);
    v.image = t.stride;
    v.data = arena + t.offset * chunk + (t.top + box.y) * v.row + (t.left + box.x) * v.pixel + box.channel * t.bytes;
    v.row *= box.step_y;
    v.pixel *= box.step_x;
    v.height = box.height, v.width = box.width, v.channels = box.channels;
    v.border_top = t.top, v.border_left = t.left, v.border_bottom = t.bottom, v.border_right = t.right;
    return v;
  }

  Box all(int tensor) const {
    const Tensor& t = e.tensors[tensor];
    return {tensor, 0, 0, 0, t.height, t.width, t.channels, 1, 1};
  }

  void meet() const {
    if (barrier) barrier->wait();
  }

  std::pair<int64_t, int64_t> share(int64_t units) const {
    return {units * worker / workers, units * (worker + 1) / workers};
  }

  void import(const Import& from, const void* source) const {
    const View v = view(from.box);
    const Tensor& t = e.tensors[from.box.tensor];
    const int64_t across = t.channel_step(), along = t.pixel_step(), plane = int64_t(v.height) * v.width;
    const auto [first, end] = share(int64_t(images) * v.height);
    for (int64_t unit = first; unit < end; ++unit) {
      const int64_t image = unit / v.height, y = unit % v.height;
      const int64_t at = (start + image) * v.channels * plane + y * v.width * along;
      uint8_t* row = v.at(image, static_cast<int>(y), 0);
      if (across == 1) {  // as it lies in the arena: an input fills the whole of a tensor
        translate(from, source, at, int64_t(v.width) * v.channels, row);
        continue;
      }
      for (int c = 0; c < v.channels; ++c)
        for (int x = 0; x < v.width; x += kPixels) {
          uint8_t codes[kPixels];
          const int count = std::min(kPixels, v.width - x);
          translate(from, source, at + c * across + x, count, codes);
          for (int i = 0; i < count; ++i) row[(x + i) * v.pixel + c] = codes[i];
        }
    }
    fill_border(t, v, first, end);
  }

  void export_(const Export& to, void* target) const {
    const View v = view(to.box);
    const Tensor& t = e.tensors[to.box.tensor];
    const int64_t across = t.channel_step(), along = t.pixel_step(), plane = int64_t(v.height) * v.width;
    const auto [first, end] = share(int64_t(images) * v.height);
    for (int64_t unit = first; unit < end; ++unit) {
      const int64_t image = unit / v.height, y = unit % v.height;
      const int64_t at = (start + image) * v.channels * plane + y * v.width * along;
      for (int x = 0; x < v.width; ++x) {
        const uint8_t* from = v.at(image, static_cast<int>(y), x);
        for (int c = 0; c < v.channels; ++c) {
          uint8_t* place = static_cast<uint8_t*>(target) + (at + c * across + x * along) * t.bytes;
          if (t.bytes == 1) *place = static_cast<uint8_t>(from[c] - to.bias);
          else std::memcpy(place, from + 2 * c, 2);
        }
      }
    }
  }

  void run(const std::vector<const void*>& sources, const std::vector<void*>& targets) const {
    for (const Import& from : e.imports) import(from, sources[from.source]);
    meet();
    std::vector<View> inputs;
    for (const Step& step : e.steps) {
      inputs.clear();
      for (const Box& box : step.inputs) inputs.push_back(view(box));
      const View out = view(step.output);
      const Tensor& t = e.tensors[step.output.tensor];
      if (step.whole) {
        clear(t, view(all(step.output.tensor)));
        meet();
      }
      const auto [first, end] = share(step.op->units(out, images));
      step.op->run(inputs.data(), out, first, end);
      if (!step.whole) {
        const auto [top, bottom] = share(int64_t(images) * t.height);
        fill_border(t, view(all(step.output.tensor)), top, bottom);
      }
      meet();
    }
    for (const Export& to : e.exports) export_(to, targets[to.target]);
    meet();
  }

  void clear(const Tensor& t, const View& v) const {
    const auto [first, end] = share(images);
    for (int64_t image = first; image < end; ++image)
      std::memset(v.at(image, -t.top, -t.left), t.fill, t.image_bytes());
  }
};

void Executor::run(const std::vector<const void*>& sources, const std::vector<void*>& targets, int64_t batch, int chunk,
                   int threads) {
  if (batch < 1) return;
  const std::lock_guard lock(running_);
  chunk = static_cast<int>(std::min<int64_t>(chunk, batch));
  int64_t chunks = (batch + chunk - 1) / chunk;
  const bool split = chunks < threads;  // too few to go round: the threads share every step
  if (!split) chunks = std::min<int64_t>(batch, (chunks + threads - 1) / threads * threads);  // as many for each thread
  const size_t wanted = split ? 1 : threads;
  if (arenas_.size() < wanted) arenas_.resize(wanted);
  const size_t bytes = static_cast<size_t>(arena_bytes * chunk) + 64 + kSlack;
  for (size_t i = 0; i < wanted; ++i)
    if (arenas_[i].size() < bytes) arenas_[i].resize(bytes);

  Barrier barrier(threads);
  std::atomic<int64_t> next{0};
  parallel(threads, [&](int worker) {
    Pass pass{*this, align(arenas_[split ? 0 : worker].data()), chunk, 0, 0};
    if (split) pass.worker = worker, pass.workers = threads, pass.barrier = threads > 1 ? &barrier : nullptr;
    for (int64_t i = 0; (i = split ? i : next.fetch_add(1)) < chunks; ++i) {
      pass.start = batch * i / chunks;
      pass.images = static_cast<int>(batch * (i + 1) / chunks - pass.start);
      pass.run(sources, targets);
    }
  });
}

}  // namespace haq
