// Any bytes as frames of another host: to the service that answers, and to the router that was answered. Input: chunks,
// each behind its length (2 bytes, little-endian); the first byte of a chunk says to whom it goes.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "api.pb.h"
#include "common/log.h"
#include "daemon/cluster/peer_calls.h"
#include "daemon/cluster/peer_rules.h"
#include "daemon/cluster/peer_service.h"
#include "daemon/cluster/router.h"

using namespace usblease;

namespace {

// Takes everything and sends nothing.
class Nowhere : public cluster::Transport {
 public:
  void set_peers(std::vector<cluster::Peer> /*peers*/) override {}
  bool ask(const std::string& /*host_id*/, std::string payload) override {
    return must_parse<peer::PeerRequest>(payload);
  }
  bool answer(cluster::AcceptedId /*id*/, std::string payload) override {
    return must_parse<peer::PeerAnswer>(payload);
  }
  void drop(cluster::AcceptedId /*id*/) override {}
  void forbid(const std::string& /*host_id*/) override {}
  void permit(const std::string& /*host_id*/) override {}
  [[nodiscard]] bool connected(const std::string& /*host_id*/) const override { return true; }

 private:
  template <typename Message>
  static bool must_parse(const std::string& payload) {
    Message message;
    if (!message.ParseFromString(payload)) std::abort();
    return true;
  }
};

std::string_view take(std::string_view& bytes, std::size_t count) {
  const std::string_view taken = bytes.substr(0, count);
  bytes.remove_prefix(taken.size());
  return taken;
}

// What passes the rules speaks for the sender alone.
void check_rules(const std::string& bytes) {
  peer::PeerRequest request;
  if (!request.ParseFromString(bytes) || !request.has_command()) return;
  command::Command& command = *request.mutable_command();
  if (cluster::restrict_command("h1", nullptr, command)) return;
  if (command.has_register_host() && command.register_host().host().id() != "h1") std::abort();
  if (command.has_host_gone()) std::abort();
  const std::string& principal = command.acquire().principal();
  if (command.has_acquire() && !principal.empty() && !principal.ends_with("@h1")) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  log::set_level(log::Level::kError);
  Nowhere transport;
  cluster::PeerServiceHooks hooks;
  hooks.who = [] { return peer::CoordinatorIs(); };
  cluster::PeerService service(transport, nullptr, std::move(hooks));
  service.accepted(1, "h1");
  cluster::Router router("h2", {});
  cluster::PeerCalls calls(
      transport, [&](const std::string& host_id, const peer::PeerAnswer& push) { router.pushed(host_id, push); });
  router.set_calls(&calls);
  calls.up("h1");
  router.store_shows("h1", 1);
  std::string_view bytes(reinterpret_cast<const char*>(data), size);
  while (bytes.size() >= 2) {
    const auto low = static_cast<unsigned char>(bytes[0]);
    const auto high = static_cast<unsigned char>(bytes[1]);
    bytes.remove_prefix(2);
    std::string chunk(take(bytes, static_cast<std::size_t>(low) + 256U * high));
    if (chunk.empty()) continue;
    const char to = chunk[0];
    chunk.erase(0, 1);
    check_rules(chunk);
    if ((static_cast<unsigned char>(to) & 1U) != 0) {
      service.request(1, chunk);
    } else {
      calls.answer("h1", chunk);
    }
  }
  service.gone(1);
  return 0;
}
