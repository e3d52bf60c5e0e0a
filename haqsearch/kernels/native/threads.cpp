#include "threads.h"

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

namespace haq {
namespace {

class Pool {
 public:
  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void run(int threads, const std::function<void(int)>& work) {
    {
      std::lock_guard lock(mutex_);
      while (static_cast<int>(threads_.size()) < threads - 1) {
        const int index = static_cast<int>(threads_.size()) + 1;
        threads_.emplace_back([this, index, seen = turn_] { serve(index, seen); });
      }
      work_ = &work;
      wanted_ = threads;
      pending_ = threads - 1;
      error_ = nullptr;
      ++turn_;
    }
    wake_.notify_all();
    guarded(work, 0);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void serve(int index, uint64_t seen) {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return closing_ || turn_ != seen; });
      if (closing_) return;
      seen = turn_;
      if (index >= wanted_) continue;
      const std::function<void(int)>& work = *work_;
      lock.unlock();
      guarded(work, index);
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  void guarded(const std::function<void(int)>& work, int index) {
    try {
      work(index);
    } catch (...) {
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* work_ = nullptr;
  std::exception_ptr error_;
  uint64_t turn_ = 0;
  int wanted_ = 0, pending_ = 0;
  bool closing_ = false;
};

// Threads do not survive a fork: a child makes a pool of its own and leaves its parent's alone.
Pool& pool() {
  static Pool* pool = nullptr;
  static pid_t owner = 0;
  if (owner != getpid()) {
    pool = new Pool;
    owner = getpid();
  }
  return *pool;
}

}  // namespace

void parallel(int threads, const std::function<void(int)>& work) {
  static std::mutex busy;
  if (threads > 1) {
    std::unique_lock lock(busy, std::try_to_lock);
    if (lock.owns_lock()) return pool().run(threads, work);
    // Somebody else has the pool. Threads of our own: the work may contain barriers, so all of it must run at once.
    Pool own;
    return own.run(threads, work);
  }
  work(0);
}

void Barrier::wait() {
  const int round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
    if (spins > 2000) std::this_thread::yield();
}

}  // namespace haq
