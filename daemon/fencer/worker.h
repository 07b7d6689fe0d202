// One thread that unbinds one device at a time. It is made before it is needed: at a deadline there may be no memory
// for a new one.
#pragma once

#include <pthread.h>
#include <semaphore.h>

#include <atomic>
#include <memory>

#include "common/error.h"
#include "daemon/fencer/binding.h"
#include "plugin/bpf/kernel_fence.h"

namespace usblease::fencer {

class Worker {
 public:
  static Result<std::unique_ptr<Worker>> make(const Binding& binding);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  // Waits for what it does. (A program that ends does not destroy its workers: a device could hold it up for ever.)
  ~Worker();

  // Which device it is at work on; 0: idle.
  [[nodiscard]] fence::DeviceNumber device() const { return device_; }
  // Only for an idle one.
  void unbind(const fence::Managed& managed);

 private:
  explicit Worker(const Binding& binding) : binding_(binding) { sem_init(&work_, 0, 0); }
  static void* run(void* self);
  void do_unbind();

  const Binding& binding_;
  fence::Managed managed_;
  std::atomic<fence::DeviceNumber> device_ = 0;
  std::atomic<bool> ending_ = false;
  sem_t work_{};
  pthread_t thread_{};
};

}  // namespace usblease::fencer
