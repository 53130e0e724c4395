// Work divided among XLA's own threads.

#ifndef INTERFLOW_JAX_ONEDNN_PARALLEL_H_
#define INTERFLOW_JAX_ONEDNN_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>

#include "xla/ffi/api/ffi.h"

// Calls function(0) to function(count - 1), here and on the pool's threads. It waits for calls that
// run, never for threads that are yet to come: those may all be busy with handlers like this one.
// Where there is no memory to ask for another thread, fewer do the work.
template <typename Function>
void Parallel(xla::ffi::ThreadPool& pool, int64_t count, const Function& function) {
  struct State {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable all_done;
    int64_t done = 0;
    std::exception_ptr error;
  };
  auto state = std::make_shared<State>();
  auto work = [state, count, &function] {
    for (int64_t i; (i = state->next++) < count;) {
      std::exception_ptr error;
      try {
        function(i);
      } catch (...) {
        error = std::current_exception();
      }
      std::lock_guard<std::mutex> lock(state->mutex);
      if (error) state->error = error;
      if (++state->done == count) state->all_done.notify_all();
    }
  };
  const int64_t helpers = std::min(pool.num_threads(), count) - 1;
  try {
    for (int64_t i = 0; i < helpers; ++i) pool.Schedule([work] { work(); });
  } catch (const std::bad_alloc&) {
  }
  work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done == count; });
  if (state->error) std::rethrow_exception(state->error);
}

#endif  // INTERFLOW_JAX_ONEDNN_PARALLEL_H_
