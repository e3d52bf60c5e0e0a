// A pool of threads that wait asleep. One caller at a time; a second caller runs alone.
#pragma once

#include <atomic>
#include <functional>

namespace haq {

// Calls work(0) .. work(threads - 1) at once and returns when all are done. An exception in one is thrown here.
void parallel(int threads, const std::function<void(int)>& work);

// Where the threads of one parallel() meet.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait();

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0};
};

}  // namespace haq
