#include "daemon/fencer/worker.h"

#include <cerrno>
#include <string>

#include "common/boottime.h"
#include "common/log.h"

namespace usblease::fencer {
namespace {

constexpr std::size_t kStackBytes = 128 * 1024UL;  // all of it locked

std::string ms_after(std::uint64_t deadline_ns, std::uint64_t now_ns) {
  if (deadline_ns == 0) return "its lease was ended";
  return std::to_string((now_ns - deadline_ns) / 1'000'000) + " ms after its deadline";
}

}  // namespace

Result<std::unique_ptr<Worker>> Worker::make(const Binding& binding) {
  std::unique_ptr<Worker> worker(new Worker(binding));  // NOLINT(cppcoreguidelines-owning-memory): private constructor
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  const int error = pthread_create(&worker->thread_, &attributes, run, worker.get());
  pthread_attr_destroy(&attributes);
  if (error != 0) {
    worker->thread_ = {};
    return fail_errno("starting a thread", error);
  }
  return worker;
}

Worker::~Worker() {
  if (thread_ != pthread_t{}) {
    ending_ = true;
    sem_post(&work_);
    pthread_join(thread_, nullptr);
  }
  sem_destroy(&work_);
}

void Worker::unbind(const fence::Managed& managed) {
  managed_ = managed;
  device_ = managed.device;
  sem_post(&work_);
}

void* Worker::run(void* self) {
  auto* worker = static_cast<Worker*>(self);
  for (;;) {
    while (sem_wait(&worker->work_) != 0 && errno == EINTR) {
    }
    if (worker->ending_) return nullptr;
    worker->do_unbind();
    worker->device_ = 0;
  }
}

void Worker::do_unbind() {
  const auto port = binding_.port_of(managed_.device);
  if (!port) return;  // it is gone, and with it every handle
  const auto unbound = binding_.unbind(*port);
  const std::uint64_t now_ns = boottime_now_ns();
  const auto token = std::to_string(managed_.grant.token);
  if (unbound) {
    log::info("unbound, " + ms_after(managed_.grant.deadline_ns, now_ns), {{"DEVICE", *port}, {"TOKEN", token}});
  } else {
    log::error(unbound.error().message + "; it is tried again, and the kernel refuses its use meanwhile",
               {{"DEVICE", *port}, {"TOKEN", token}});
  }
}

}  // namespace usblease::fencer
