#include <glib.h>

#include <random>

#include "common/glib_ptr.h"
#include "common/text.h"
#include "tests/cluster/holder.h"

namespace usblease::cluster_test {
namespace {

constexpr std::uint32_t kAnswerMs = 8'000;
constexpr std::uint32_t kAgainMs = 50;
constexpr std::uint32_t kRestMs = 50;  // between two leases: the audit trail keeps a bounded number of lines
constexpr int kAcquireAttempts = 20;   // of one request; each is the same request
constexpr std::uint32_t kReleaseMaxMs = 60'000;

std::string new_uuid() {
  const GChars text(g_uuid_string_random());
  return text.get();
}

class Bare {
 public:
  explicit Bare(const HolderOptions& options)
      : options_(options),
        log_(options.history_path, options.name),
        client_(options.socket_path),
        random_(options.seed) {}

  int run() {
    while (!told_to_end()) one_lease();
    return 0;
  }

  // Until the daemon has said that nothing is left.
  bool release(const std::string& uuid, const std::string& nonce) {
    const std::uint64_t give_up_ns = monotonic_now_ns() + kReleaseMaxMs * std::uint64_t{1'000'000};
    log_.write("releasing", {{"guest", uuid}, {"nonce", nonce}});
    while (monotonic_now_ns() < give_up_ns) {
      api::ClientFrame frame;
      api::ReleaseLease& request = *frame.mutable_release_lease();
      request.set_guest_uuid(uuid);
      request.set_nonce(nonce);
      request.set_wait_fenced(true);
      const auto answer = client_.ask(std::move(frame), kAnswerMs);
      const auto code = answer ? answer->status().code() : command::CODE_UNSPECIFIED;
      if (code == command::CODE_OK) {
        log_.write("released", {{"guest", uuid}, {"nonce", nonce}});
        return true;
      }
      // TIMED_OUT: it is given back, but its home has not confirmed; that is a matter of the home.
      if (code == command::CODE_TIMED_OUT) return true;
      sleep_anyway(kAgainMs);
    }
    log_.write("unreleased", {{"guest", uuid}, {"nonce", nonce}});
    return false;
  }

 private:
  void one_lease() {
    const std::string uuid = new_uuid();
    const std::string nonce = random_hex(8);
    api::ClientFrame frame;
    api::AcquireLease& request = *frame.mutable_acquire_lease();
    request.set_request_id(options_.name + "-" + nonce);
    request.set_guest_uuid(uuid);
    request.set_guest_name(options_.name);
    request.set_nonce(nonce);
    for (const std::string& device : options_.devices) request.add_devices(device);
    request.set_wait_ms(options_.wait_ms);
    for (const std::string& device : options_.devices)
      log_.write("acquire", {{"guest", uuid}, {"nonce", nonce}, {"device", device}});
    const bool granted = acquire(frame, uuid, nonce);
    if (granted) sleep_ms(std::uniform_int_distribution<std::uint32_t>(0, options_.hold_ms)(random_));
    // Also when nobody knows: it may have been granted.
    release(uuid, nonce);
    sleep_ms(kRestMs);
  }

  bool acquire(const api::ClientFrame& frame, const std::string& uuid, const std::string& nonce) {
    for (int attempt = 0; attempt < kAcquireAttempts && !told_to_end(); ++attempt) {
      const auto answer = client_.ask(frame, options_.wait_ms + kAnswerMs);
      if (answer && answer->status().code() == command::CODE_OK) {
        for (const command::Grant& grant : answer->acquire_lease().grants()) {
          log_.write("granted", {{"guest", uuid}, {"nonce", nonce}, {"device", grant.device()}},
                     {{"token", grant.token()}});
        }
        return true;
      }
      if (answer && answer->status().code() != command::CODE_UNAVAILABLE) {
        log_.write("refused", {{"guest", uuid}, {"nonce", nonce}, {"why", answer->status().message()}});
        return false;
      }
      sleep_ms(kAgainMs);
    }
    log_.write("unknown", {{"guest", uuid}, {"nonce", nonce}, {"why", "no answer"}});
    return false;
  }

  static void sleep_anyway(std::uint32_t duration_ms) { g_usleep(duration_ms * 1000UL); }

  const HolderOptions& options_;
  HistoryLog log_;
  DaemonClient client_;
  std::mt19937 random_;
};

}  // namespace

int run_bare(const HolderOptions& options) { return Bare(options).run(); }

int run_release(const HolderOptions& options) { return Bare(options).release(options.uuid, options.name) ? 0 : 1; }

}  // namespace usblease::cluster_test
